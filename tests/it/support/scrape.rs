//! `/metrics` as Prometheus reads it.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::{Answer, send};

/// One response in the text format.
#[derive(Debug)]
pub struct Scrape(pub String);

/// A request of a path of the admin listener.
pub async fn get(origin: &str, path: &str) -> Answer {
    send(origin, Request::get(path).body(String::new()).unwrap()).await
}

/// Status, content type and body, unless the connection is closed instead: that may happen when a drain begins.
pub async fn try_get(origin: &str, path: &str) -> Option<(u16, String, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(format!("{origin}{path}").parse().unwrap()).await.ok()?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let content_type = parts.headers.get("content-type")?.to_str().ok()?.to_owned();
    Some((parts.status.as_u16(), content_type, String::from_utf8(body.to_vec()).unwrap()))
}

impl Scrape {
    pub async fn of(admin: &str) -> Self {
        let (status, _, text) = get(admin, "/metrics").await;
        assert_eq!(status, 200);
        Self(text)
    }

    /// Until the condition holds.
    pub async fn until(admin: &str, condition: impl Fn(&Self) -> bool) -> Self {
        for _ in 0..400 {
            let scrape = Self::of(admin).await;
            if condition(&scrape) {
                return scrape;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {}", Self::of(admin).await.0);
    }

    /// The names of all families that have a sample.
    pub fn names(&self) -> BTreeSet<&str> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.map(|line| line.split(' ').next().unwrap()).collect()
    }

    /// The values of the series of this name that have these labels.
    pub fn series(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let lines = self.0.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            let is_named = rest.starts_with(['{', ' ']);
            is_named
                && labels.iter().all(|(label, value)| {
                    ["{", ","].iter().any(|before| rest.contains(&format!("{before}{label}=\"{value}\"")))
                })
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    }

    /// The sum of these series, of which there is at least one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.series(name, labels);
        assert!(!series.is_empty(), "no {name} {labels:?} in {}", self.0);
        series.iter().sum()
    }
}
