//! Progress on a terminal: one bar for each part of the run, with rate and time to go; lines where
//! stderr is no terminal; nothing when asked for quiet.
//!
//! Invariants: everything goes to stderr, stdout belongs to the result; a part that is over keeps its
//! last line.
//!
//! Called by the command line, which hands it to the scenario.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Lines, Progress};

const TICK: Duration = Duration::from_millis(200);
const DRAWS_PER_SECOND: u8 = 5;
const BAR: &str = "{prefix:>24}  {bar:24.cyan/dim}  {human_pos}/{human_len}  {per_sec}  {eta_precise} to go  {msg:.dim}";
const SPINNER: &str = "{prefix:>24}  {spinner}  {elapsed_precise}  {msg:.dim}";

/// What fits where the run is watched from.
pub fn for_stderr(is_quiet: bool) -> Box<dyn Progress> {
    if is_quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Console::new(stderr))
    } else {
        Box::new(Lines::new())
    }
}

fn stderr() -> ProgressDrawTarget {
    ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND)
}

/// Says nothing.
#[derive(Debug)]
struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn at(&self, _: u64, _: &str) {}
}

/// Bars on a terminal.
struct Console {
    target: fn() -> ProgressDrawTarget,
    bar: Mutex<Option<ProgressBar>>,
}

impl Console {
    fn new(target: fn() -> ProgressDrawTarget) -> Self {
        Self {
            target,
            bar: Mutex::new(None),
        }
    }

    fn replace(&self, next: Option<ProgressBar>) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(over) = std::mem::replace(&mut *bar, next)
        {
            over.abandon();
        }
    }
}

impl Progress for Console {
    fn phase(&self, name: &str, total: Option<u64>) {
        let bar = match total {
            Some(total) => ProgressBar::with_draw_target(Some(total), (self.target)()),
            None => ProgressBar::with_draw_target(None, (self.target)()),
        };
        let template = if total.is_some() { BAR } else { SPINNER };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(TICK);
        self.replace(Some(bar));
    }

    fn at(&self, done: u64, note: &str) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = &*bar
        {
            bar.set_position(done);
            bar.set_message(note.to_owned());
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.replace(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use indicatif::TermLike;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn add(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            160
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.add(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.add(text)
        }
        fn clear_line(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    static SCREEN: LazyLock<Screen> = LazyLock::new(Screen::default);

    #[test]
    fn each_part_leaves_its_last_line() {
        let target = || ProgressDrawTarget::term_like_with_hz(Box::new(SCREEN.clone()), 255);
        let console = Console::new(target);
        console.at(1, "before any part");
        console.phase("connecting", Some(1_000_000));
        console.at(250_000, "48,000/s");
        console.phase("holding", None);
        console.at(7, "30 s left");
        drop(console);
        let screen = SCREEN.0.lock().unwrap();
        for part in [
            "connecting",
            "250,000/1,000,000",
            "48,000/s",
            "to go",
            "holding",
            "30 s left",
        ] {
            assert!(screen.contains(part), "{part} in {screen}");
        }
        assert!(!screen.contains("before any part"));
    }
}
