//! Which ids the callers ask for, and which user owns each.

use clap::ValueEnum;

/// Users who own the rows of a scattered table: a prime, so that neither the number of rows nor that of callers ties a
/// caller to few of them.
const OWNERS: i64 = 1009;

/// Distance between two calls' ids, modulo the number of rows. It is a prime above any number of rows, so each id is
/// asked for once.
const STEP: i64 = 2_654_435_761;

/// In which order the ids of a table are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Ids of 1,009 users, those of consecutive calls far apart
    Scattered,
    /// Ids of one user, a contiguous range for each caller
    Contiguous,
}

/// The table `collections` of one database, with ids from 1 on.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Table {
    pub rows: i64,
    pub order: Order,
}

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub id: i64,
    pub owner: i64,
}

/// How the ids of a table are divided among callers. No id is asked for twice.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub table: Table,
    pub callers: usize,
    /// Calls of one caller at most.
    each: i64,
}

/// The rows that one caller asks for, in their order.
#[derive(Clone, Debug)]
pub struct Rows {
    spread: Spread,
    caller: i64,
    next: i64,
}

impl Table {
    pub const fn owners(self) -> i64 {
        match self.order {
            Order::Scattered => OWNERS,
            Order::Contiguous => 1,
        }
    }

    const fn owner(self, id: i64) -> i64 {
        1 + id % self.owners()
    }

    /// The owner of an id as an expression of SQL, or of pgbench.
    pub fn owner_expression(self, id: &str) -> String {
        format!("1 + {id} % {}", self.owners())
    }
}

impl Spread {
    /// For this many calls in all, or a few more, as far as there are rows.
    pub fn over(table: Table, callers: usize, calls: usize) -> Self {
        let each = i64::try_from(calls.div_ceil(callers)).expect("no benchmark needs that many");
        let mut spread = Self { table, callers, each };
        spread.each = each.min(spread.share());
        spread
    }

    /// Ids of the table for each caller.
    fn share(self) -> i64 {
        self.table.rows / i64::try_from(self.callers).expect("few callers")
    }

    pub fn calls(self) -> i64 {
        self.each * i64::try_from(self.callers).expect("few callers")
    }

    pub fn rows(self, caller: usize) -> Rows {
        Rows { spread: self, caller: i64::try_from(caller).expect("few callers"), next: 0 }
    }

    /// The rows of each caller.
    pub fn all(self) -> Vec<Rows> {
        (0..self.callers).map(|caller| self.rows(caller)).collect()
    }

    /// The id of a caller's call by number, from 0 on.
    fn id(self, caller: i64, call: i64) -> i64 {
        match self.table.order {
            Order::Scattered => {
                let number = call * i64::try_from(self.callers).expect("few callers") + caller;
                1 + number * STEP % self.table.rows
            }
            Order::Contiguous => 1 + caller * self.share() + call,
        }
    }

    /// The same as an expression of pgbench.
    pub fn id_expression(self, caller: &str, call: &str) -> String {
        let (rows, share, callers) = (self.table.rows, self.share(), self.callers);
        match self.table.order {
            Order::Scattered => format!("1 + ({call} * {callers} + {caller}) * {STEP} % {rows}"),
            Order::Contiguous => format!("1 + {caller} * {share} + {call}"),
        }
    }
}

impl Iterator for Rows {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        if self.next == self.spread.each {
            return None;
        }
        let id = self.spread.id(self.caller, self.next);
        self.next += 1;
        Some(Row { id, owner: self.spread.table.owner(id) })
    }
}
