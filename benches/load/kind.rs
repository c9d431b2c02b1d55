//! What can be measured, by name.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// pgbench with one statement a destroy
    Pgbench,
    /// Destroy over gRPC, on PostgreSQL
    GrpcPostgres,
    /// The same while another transaction keeps a row locked, which its owner asks for ten times a second
    GrpcLockedRow,
    /// The same of the program that --versus names
    #[value(skip)]
    GrpcVersus,
    /// Health/Check, an empty RPC, of the same server
    Health,
    /// 1.1 requests with OAuth 1.0a, over HTTP/1.1, on PostgreSQL
    RestPostgres,
    /// The same over HTTP/2
    RestH2Postgres,
    /// Destroy over gRPC, on SQLite
    GrpcSqlite,
    /// The same with batches of one
    GrpcSqliteSingle,
    /// Two processes on one PostgreSQL, whose callers want the same ids
    TwoProcesses,
    /// An open loop at half the rate of the best grpc-postgres
    HalfLoad,
    /// An open loop at three times that rate
    Overload,
    /// An open loop at the rate that was asked for
    #[value(skip)]
    GivenRate,
}

impl Kind {
    /// Whether it is measured for each number of callers.
    pub const fn has_callers(self) -> bool {
        !matches!(self, Self::TwoProcesses | Self::HalfLoad | Self::Overload | Self::GivenRate)
    }

    /// Whether its requests are signed beforehand.
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::RestPostgres | Self::RestH2Postgres)
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Pgbench => "pgbench, one statement a destroy, prepared",
            Self::GrpcPostgres => "**gRPC, PostgreSQL**",
            Self::GrpcLockedRow => "the same, with a locked row that is asked for",
            Self::GrpcVersus => "gRPC, PostgreSQL, the other program",
            Self::Health => "an empty RPC (Health/Check)",
            Self::RestPostgres => "REST, OAuth 1.0a, PostgreSQL",
            Self::RestH2Postgres => "the same over HTTP/2",
            Self::GrpcSqlite => "gRPC, SQLite",
            Self::GrpcSqliteSingle => "gRPC, SQLite, batches of one",
            Self::TwoProcesses => "two processes on one PostgreSQL",
            Self::HalfLoad => "half the maximum",
            Self::Overload => "three times the maximum",
            Self::GivenRate => "the given rate",
        }
    }

    /// For the plot.
    pub const fn short_label(self) -> &'static str {
        match self {
            Self::Pgbench => "pgbench, one statement",
            Self::GrpcPostgres => "gRPC, PostgreSQL",
            Self::Health => "empty RPC",
            Self::RestPostgres => "REST (HTTP/1.1), PostgreSQL",
            Self::RestH2Postgres => "REST (HTTP/2), PostgreSQL",
            Self::GrpcSqlite => "gRPC, SQLite",
            Self::GrpcSqliteSingle => "gRPC, SQLite, batches of one",
            _ => self.label(),
        }
    }
}
