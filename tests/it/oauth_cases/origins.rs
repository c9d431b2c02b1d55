//! Where requests may be addressed to.

use super::{ACCEPTED, Expected, INVALID};

/// The target's beginning, the Host header, the origin that was signed, the answer.
pub type Addressed = (&'static str, &'static str, &'static str, Expected);

/// Without public origins: what the request names.
pub const OWN: [Addressed; 26] = [
    ("", "photos.example", "http://photos.example", ACCEPTED),
    ("", "photos.example:80", "http://photos.example", ACCEPTED),
    ("", "photos.example:443", "http://photos.example:443", ACCEPTED),
    ("", "photos.example:3000", "http://photos.example:3000", ACCEPTED),
    ("", "PHOTOS.Example", "http://photos.example", ACCEPTED),
    ("", "PHOTOS.Example:3000", "http://photos.example:3000", ACCEPTED),
    ("", "127.0.0.1:8080", "http://127.0.0.1:8080", ACCEPTED),
    ("", "[::1]", "http://[::1]", ACCEPTED),
    ("", "[::1]:8080", "http://[::1]:8080", ACCEPTED),
    ("", "photos.example:80", "http://photos.example:80", INVALID),
    ("", "photos.example:443", "http://photos.example", INVALID),
    ("", "photos.example:443", "https://photos.example", INVALID),
    ("", "photos.example:3000", "http://photos.example", INVALID),
    ("", "photos.example", "https://photos.example", INVALID),
    ("", "PHOTOS.Example", "http://PHOTOS.Example", INVALID),
    ("", "photos.example:70000", "http://photos.example", INVALID),
    ("", "photos.example:+80", "http://photos.example", INVALID),
    ("", "photos.example[::1]:80", "http://photos.example[", INVALID),
    ("", "somebody@photos.example", "http://photos.example", INVALID),
    ("", "photos.example#", "http://photos.example", INVALID),
    ("", "photos.example/", "http://photos.example", INVALID),
    // A target with a scheme and a host outdoes the Host header.
    ("http://photos.example", "x", "http://photos.example", ACCEPTED),
    ("HTTP://Photos.example:80", "x", "http://photos.example", ACCEPTED),
    ("https://photos.example:443", "x", "https://photos.example", ACCEPTED),
    ("https://photos.example:80", "x", "https://photos.example:80", ACCEPTED),
    ("http://photos.example", "x", "http://x", INVALID),
];

pub const PUBLIC_ORIGINS: [&str; 4] = [
    "https://API.example:443",
    "http://api.example:80",
    "HTTPS://api.example:8443",
    "http://photos.example:443",
];

/// With these public origins: any of them, whatever the request names.
pub const PUBLIC: [Addressed; 10] = [
    ("", "x", "https://api.example", ACCEPTED),
    ("", "x", "http://api.example", ACCEPTED),
    ("", "x", "https://api.example:8443", ACCEPTED),
    ("", "x", "http://photos.example:443", ACCEPTED),
    ("https://x", "x", "https://api.example", ACCEPTED),
    ("", "x", "http://x", INVALID),
    ("", "x", "https://api.example:443", INVALID),
    ("", "x", "https://API.example", INVALID),
    ("", "x", "http://api.example:8443", INVALID),
    ("", "photos.example", "http://photos.example", INVALID),
];
