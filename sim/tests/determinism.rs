//! One seed is one run.

use trunkline_sim::runs::run;

/// Goal: whatever a seed shows can be looked at again. Method: the whole trace of a seed, twice, in
/// different threads (whose hash tables the standard library seeds apart), line by line.
#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in [1, 7, 42, 1_000] {
        let first = run(seed, None, true);
        let second = std::thread::spawn(move || run(seed, None, true)).join();
        let second = second.expect("the second run ends like the first");
        let (a, b) = (first.text.expect("kept"), second.text.expect("kept"));
        let mut lines = a.lines().zip(b.lines()).enumerate();
        if let Some((at, (a, b))) = lines.find(|(_, (a, b))| a != b) {
            panic!("seed {seed} differs at line {at}:\n{a}\n{b}");
        }
        assert_eq!(a.len(), b.len(), "seed {seed}");
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert!(
            first.lines > 1_000,
            "seed {seed} does little: {}",
            first.lines
        );
    }
}

/// Goal: keeping the text does not change the run.
#[test]
fn the_hash_is_the_same_with_and_without_the_text() {
    let kept = run(3, None, true);
    let hashed = run(3, None, false);
    assert_eq!((kept.hash, kept.lines), (hashed.hash, hashed.lines));
    assert!(hashed.text.is_none());
}

#[test]
fn seeds_differ() {
    assert_ne!(run(1, None, false).hash, run(2, None, false).hash);
}
