//! Who should have a partition: rendezvous hashing. Each core gets a score for each partition, and
//! the highest has it, so a core that comes or goes moves its own share and nothing else.
//!
//! The score is of the address, not of the incarnation: a core that was started again gets the
//! partitions back that it had. Cores of equal address (one that was started again, and its
//! predecessor until that is known dead) are told apart by their incarnations.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A core that may have partitions. `scores` depend on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub incarnation: Uuid,
    address_hash: u64,
    incarnation_hash: u64,
}

impl Candidate {
    pub fn new(incarnation: Uuid, address: &str) -> Self {
        Self {
            incarnation,
            address_hash: xxh3_64_with_seed(address.as_bytes(), 0),
            incarnation_hash: xxh3_64_with_seed(incarnation.as_bytes(), 0),
        }
    }

    /// The higher, the sooner it has the partition.
    fn score(&self, partition: u16) -> (u64, u64) {
        let of = |hash: u64| xxh3_64_with_seed(&hash.to_le_bytes(), u64::from(partition));
        (of(self.address_hash), of(self.incarnation_hash))
    }
}

/// Who should have a partition; `None` of nobody.
pub fn desired(partition: u16, among: &[Candidate]) -> Option<Uuid> {
    among
        .iter()
        .max_by_key(|c| c.score(partition))
        .map(|c| c.incarnation)
}

/// How many of `among` come before `of` in the line for a partition.
pub fn rank(partition: u16, of: &Candidate, among: &[Candidate]) -> usize {
    let own = of.score(partition);
    among.iter().filter(|c| c.score(partition) > own).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITIONS: u16 = 1_024;

    fn cores(n: u8) -> Vec<Candidate> {
        (0..n)
            .map(|i| {
                Candidate::new(
                    Uuid::from_bytes([i; 16]),
                    &format!("http://10.0.0.{i}:7420"),
                )
            })
            .collect()
    }

    #[test]
    fn a_new_core_takes_its_share_and_nothing_else_moves() {
        for n in 1..12_u8 {
            let all = cores(n + 1);
            let before = &all[..usize::from(n)];
            let new = all[usize::from(n)].incarnation;
            let mut moved = 0;
            for p in 0..PARTITIONS {
                let (old, now) = (desired(p, before), desired(p, &all));
                if old != now {
                    assert_eq!(now, Some(new), "{p} moved between old cores");
                    moved += 1;
                }
            }
            let share = f64::from(PARTITIONS) / f64::from(n + 1);
            assert!(
                (share * 0.7..share * 1.3).contains(&f64::from(moved)),
                "{moved} of {share} with {n} cores before"
            );
        }
    }

    #[test]
    fn a_core_that_was_started_again_gets_its_partitions_back() {
        let before = cores(5);
        let mut after = before.clone();
        after[2] = Candidate::new(Uuid::from_bytes([99; 16]), "http://10.0.0.2:7420");
        for p in 0..PARTITIONS {
            let old = desired(p, &before);
            let new = desired(p, &after);
            if old == Some(before[2].incarnation) {
                assert_eq!(new, Some(after[2].incarnation));
            } else {
                assert_eq!(new, old);
            }
        }
    }

    #[test]
    fn the_line_begins_with_the_desired_owner() {
        let all = cores(4);
        for p in 0..PARTITIONS {
            let mut ranks: Vec<usize> = all.iter().map(|c| rank(p, c, &all)).collect();
            let first = all[ranks.iter().position(|r| *r == 0).expect("a first")];
            assert_eq!(desired(p, &all), Some(first.incarnation));
            ranks.sort_unstable();
            assert_eq!(ranks, [0, 1, 2, 3]);
        }
        assert_eq!(desired(0, &[]), None);
    }
}
