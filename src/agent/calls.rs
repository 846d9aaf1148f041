//! Calls of the server's agent service (agent.md §2), typed.

use crate::{base::WallTime, proto::coord::CallError};
use prost::Message;
use std::future::Future;

/// Something that carries one call to the server and its answer back.
pub(crate) trait Calls: Send + Sync {
    fn call(&self, path: &'static str, body: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, CallError>> + Send;
}

/// Why a call gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{path}: {why}")]
    Call { path: &'static str, why: CallError },
    #[error("{path}: the answer cannot be read")]
    Answer { path: &'static str, why: prost::DecodeError },
}

/// A date as messages carry it.
pub(crate) fn timestamp(at: WallTime) -> prost_types::Timestamp {
    let since = at.since_unix();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// One request and its answer.
pub(crate) async fn ask<A>(server: &impl Calls, path: &'static str, request: &impl Message) -> Result<A, AskError>
where
    A: Message + Default,
{
    let answer = server.call(path, request.encode_to_vec()).await.map_err(|why| AskError::Call { path, why })?;
    A::decode(answer.as_slice()).map_err(|why| AskError::Answer { path, why })
}

#[cfg(test)]
pub(crate) mod fake {
    //! A server in memory that remembers what it was asked.

    use super::*;
    use std::{collections::VecDeque, sync::Mutex};

    /// Answers every path by `answer`, which sees the body.
    pub(crate) struct Fake<F> {
        answer: F,
        pub(crate) asked: Mutex<VecDeque<(&'static str, Vec<u8>)>>,
    }

    impl<F> Fake<F> {
        pub(crate) fn new(answer: F) -> Self {
            Self { answer, asked: Mutex::default() }
        }

        /// The calls of `path` so far, read as `M`.
        pub(crate) fn asked<M: Message + Default>(&self, path: &str) -> Vec<M> {
            let asked = self.asked.lock().unwrap();
            asked.iter().filter(|(p, _)| *p == path).map(|(_, body)| M::decode(body.as_slice()).unwrap()).collect()
        }
    }

    impl<F> Calls for Fake<F>
    where
        F: Fn(&'static str, &[u8]) -> Result<Vec<u8>, CallError> + Send + Sync,
    {
        async fn call(&self, path: &'static str, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
            let answer = (self.answer)(path, &body);
            self.asked.lock().unwrap().push_back((path, body));
            answer
        }
    }
}
