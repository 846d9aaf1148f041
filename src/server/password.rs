//! Passwords: what is a good one, and their hashes by Argon2id.

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use serde::{Deserialize, Deserializer};
use std::{fmt, sync::OnceLock};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::token::{NoRandomness, salt};

/// The longest password; hashing takes no longer for it.
const MAX_CHARS: usize = 64;
/// What guessing must cost at least, in bits, if one knew what kinds of characters were used.
const LEAST_BITS: f64 = 52.0;
/// Hashes at once: each takes 19 MiB and a core for a moment. Whoever waits beyond these would wait for seconds.
static GATE: Gate = Gate::new(2, 64);

/// A password as it was typed. Never printed, wiped on drop.
#[derive(Clone, Default)]
pub(crate) struct Password(Zeroizing<String>);

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Why no hash was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    #[error(transparent)]
    Random(#[from] NoRandomness),
    #[error("the password cannot be hashed: {0}")]
    Failed(String),
    #[error("too many passwords wait to be checked")]
    Busy,
}

impl Password {
    /// Whether nothing was typed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is wrong with it as a new password.
    pub(crate) fn weakness(&self) -> Option<String> {
        let chars = self.0.chars().count();
        if chars > MAX_CHARS {
            return Some(format!("The password is longer than {MAX_CHARS} characters."));
        }
        if bits(&self.0) < LEAST_BITS {
            return Some("The password is too easy to guess: take a longer one, or more kinds of characters.".to_owned());
        }
        None
    }

    /// Its hash with a fresh salt, in the form of the PHC.
    pub(crate) async fn hash(self) -> Result<String, HashError> {
        let salt = salt()?;
        let made = GATE.in_turn(move || {
            let hash: Result<PasswordHash, _> = Argon2::default().hash_password_with_salt(self.0.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(|error| HashError::Failed(error.to_string()))
        });
        made.await?
    }

    /// Whether it is the one of `stored`. Where there is none, it takes as long to say so.
    pub(crate) async fn matches(self, stored: Option<String>) -> Result<bool, HashError> {
        let checked = GATE.in_turn(move || {
            let known = stored.is_some();
            let stored = stored.unwrap_or_else(|| nobodys_hash().to_owned());
            let Ok(hash) = PasswordHash::new(&stored) else { return false };
            let chars = self.0.chars().count();
            let same = Argon2::default().verify_password(self.0.as_bytes(), &hash).is_ok();
            known && same && chars <= MAX_CHARS
        });
        checked.await
    }
}

/// Lets so many at once do work that takes a core for a moment, and so many wait for it.
struct Gate {
    turns: Semaphore,
    places: Semaphore,
}

impl Gate {
    const fn new(turns: usize, places: usize) -> Self {
        Self { turns: Semaphore::const_new(turns), places: Semaphore::const_new(places) }
    }

    /// Runs work beside the runtime's threads. Its turn lasts as long as the work, also where nobody waits for it any more.
    async fn in_turn<T: Send + 'static>(&'static self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, HashError> {
        let place = self.places.try_acquire().map_err(|_| HashError::Busy)?;
        let turn = self.turns.acquire().await.map_err(|_| HashError::Busy)?;
        drop(place);
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        work.await.map_err(|_| HashError::Failed("its thread ended".to_owned()))
    }
}

/// A hash that stands for users who are not there.
fn nobodys_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        let hash: Result<PasswordHash, _> = Argon2::default().hash_password_with_salt(b"nobody", b"nobody has this salt");
        hash.map(|hash| hash.to_string()).unwrap_or_default()
    })
}

/// What it costs to try all passwords of this length and these kinds of characters. Runs of one character count twice at
/// most, and so do steps up and down the alphabet.
fn bits(password: &str) -> f64 {
    type Kind = (fn(char) -> bool, f64);
    let kinds: [Kind; 4] = [
        (|c| c.is_ascii_lowercase(), 26.0),
        (|c| c.is_ascii_uppercase(), 26.0),
        (|c| c.is_ascii_digit(), 10.0),
        (|c| !c.is_ascii_alphanumeric(), 33.0),
    ];
    let pool: f64 = kinds.iter().filter(|(is, _)| password.chars().any(is)).map(|(_, size)| size).sum();
    let mut steps = Vec::new();
    let mut counted = 0_u32;
    let mut last: Option<char> = None;
    for c in password.chars() {
        let step = last.map(|last| i64::from(u32::from(c)) - i64::from(u32::from(last)));
        let regular = step.is_some_and(|step: i64| step.abs() <= 1 && steps.last() == Some(&step));
        steps.extend(step);
        last = Some(c);
        counted += u32::from(!regular);
    }
    f64::from(counted) * pool.max(1.0).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn passwords_that_are_quickly_guessed_are_refused() {
        for good in ["correct horse battery", "SomeSecure9Word!", "xkq3-vbn8-aa"] {
            assert_eq!(password(good).weakness(), None, "{good}");
        }
        for bad in ["", "short", "aaaaaaaaaaaaaaaaaaaaaaaa", "abcdefghijklmnop", "0123456789", "12345678!", &"Ab1!".repeat(17)] {
            assert!(password(bad).weakness().is_some(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_alone_and_nobodys_matches_nothing() {
        let first = password("SomeSecure9Word!").hash().await.unwrap();
        let second = password("SomeSecure9Word!").hash().await.unwrap();
        assert!(first.starts_with("$argon2id$") && first != second, "{first}");
        assert!(password("SomeSecure9Word!").matches(Some(first.clone())).await.unwrap());
        assert!(!password("someSecure9Word!").matches(Some(first)).await.unwrap());
        assert!(!password("nobody").matches(None).await.unwrap());
        assert!(!password("").matches(Some(String::new())).await.unwrap());
    }

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_its_work_and_only_so_many_wait_for_theirs() {
        static GATE: Gate = Gate::new(1, 2);
        let (go, wait) = std::sync::mpsc::channel();
        let mut first = Box::pin(GATE.in_turn(move || wait.recv()));
        assert!(futures::poll!(first.as_mut()).is_pending());
        // Nobody waits for it any more, but it is at work.
        drop(first);
        let [mut second, mut third, mut fourth] = [0; 3].map(|_| Box::pin(GATE.in_turn(|| ())));
        assert!(futures::poll!(second.as_mut()).is_pending() && futures::poll!(third.as_mut()).is_pending());
        assert!(matches!(futures::poll!(fourth.as_mut()), std::task::Poll::Ready(Err(HashError::Busy))));
        go.send(()).unwrap();
        second.await.unwrap();
        third.await.unwrap();
        GATE.in_turn(|| ()).await.unwrap();
    }

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", password("SomeSecure9Word!")).contains("Secure"));
    }
}
