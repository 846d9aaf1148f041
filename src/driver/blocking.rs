//! Calls that a file system may hold up, on threads of their own: whoever waits for one waits alone.
//!
//! tokio's threads for such calls would not do. They end when they are idle, and with them, on Linux, every process that was
//! started there and asked to end with its parent: for the kernel that is a thread. A dead network file system would also
//! take all of them, and with them the resolving of names.
//!
//! One thing they cannot help: a process whose program does not come holds what was open when it began, the pipes of those
//! included that are started in the same millisecond; their output then ends for a reader when that process does.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

/// Threads that are there from the first call on.
const AT_FIRST: usize = 4;
/// Most threads.
const MOST: usize = 64;
/// Most calls that wait for a thread.
const MAX_WAITING: usize = 1024;
/// How long a call waits for a thread before there is one more.
const PATIENCE: Duration = Duration::from_millis(250);

static POOL: Pool = Pool::new();

/// Runs `call` on a thread where it may block. The runtime's own calls work there too.
///
/// # Errors
/// When too many calls wait already, no thread can be started, or `call` panics.
///
/// # Cancel safety
/// A cancelled call is not made where it has not begun. Else it runs to its end, and its result is dropped on its thread.
pub(crate) async fn run<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    POOL.run(call).await
}

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    waiting: VecDeque<Job>,
    threads: usize,
}

impl Pool {
    const fn new() -> Self {
        Self { state: Mutex::new(State { waiting: VecDeque::new(), threads: 0 }), work: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T: Send + 'static>(&'static self, call: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let runtime = Handle::current();
        let (begin, mut begun) = oneshot::channel();
        let (tell, result) = oneshot::channel();
        self.queue(Box::new(move || {
            if tell.is_closed() {
                return;
            }
            // Both are heard by a caller that still waits.
            let _ = begin.send(());
            let _entered = runtime.enter();
            let _ = tell.send(call());
        }))?;
        while timeout(PATIENCE, &mut begun).await.is_err() && self.grow() {}
        result.await.map_err(|_| io::Error::other("a call failed on its thread"))
    }

    fn queue(&'static self, job: Job) -> io::Result<()> {
        let mut state = self.state();
        if state.waiting.len() >= MAX_WAITING {
            let why = "too many calls wait for a file system that does not answer";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        while state.threads < AT_FIRST {
            match self.start_thread(&mut state) {
                Err(error) if state.threads == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        state.waiting.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// One thread more for what waits; false when there can be no more.
    fn grow(&'static self) -> bool {
        let mut state = self.state();
        state.waiting.is_empty() || (state.threads < MOST && self.start_thread(&mut state).is_ok())
    }

    fn start_thread(&'static self, state: &mut State) -> io::Result<()> {
        thread::Builder::new().name("blocking".to_owned()).spawn(|| self.work())?;
        state.threads += 1;
        Ok(())
    }

    fn work(&self) {
        loop {
            let mut state = self.state();
            let job = loop {
                match state.waiting.pop_front() {
                    Some(job) => break job,
                    None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            // Its caller is told by the end of its channel.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::sync::mpsc;

    fn pool() -> &'static Pool {
        Box::leak(Box::new(Pool::new()))
    }

    #[tokio::test]
    async fn a_call_goes_on_beside_many_that_hang_and_a_failed_one_costs_no_thread() {
        let pool = pool();
        let mut held = Vec::new();
        for _ in 0..2 * AT_FIRST {
            let (free, wait) = mpsc::channel::<()>();
            held.push((free, tokio::spawn(pool.run(move || wait.recv().is_err()))));
        }
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
        assert!(pool.run(|| panic!("on purpose")).await.is_err());
        let threads = pool.state().threads;
        assert!((2 * AT_FIRST + 1..MOST).contains(&threads), "{threads}");
        for (free, call) in held {
            assert!(!call.is_finished());
            drop(free);
            assert!(call.await.unwrap().unwrap());
        }
        assert!(pool.run(|| Handle::try_current().is_ok()).await.unwrap(), "the runtime is there");
        assert_eq!(pool.state().threads, threads, "threads stay, and no more come than are needed");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_begun_or_its_result_dropped() {
        #[derive(Debug)]
        struct Told(mpsc::Sender<&'static str>, &'static str);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(self.1);
            }
        }
        let pool = pool();
        let (tell, told) = mpsc::channel();
        let mut held = Vec::new();
        let (begin, begun) = mpsc::channel();
        for _ in 0..AT_FIRST {
            let (free, wait) = mpsc::channel::<()>();
            let (result, begin) = (Told(tell.clone(), "result"), begin.clone());
            let call = move || {
                begin.send(()).unwrap();
                let _ = wait.recv();
                result
            };
            held.push((free, tokio::spawn(pool.run(call))));
        }
        let late = Told(tell, "not begun");
        let late = tokio::spawn(pool.run(move || {
            let late = late;
            panic!("{} begins", late.1)
        }));
        tokio::task::yield_now().await;
        // The runtime's only thread: the tasks have queued their calls.
        for _ in 0..AT_FIRST {
            begun.recv().unwrap();
        }
        late.abort();
        assert!(late.await.unwrap_err().is_cancelled());
        for (free, call) in held {
            call.abort();
            assert!(call.await.unwrap_err().is_cancelled());
            drop(free);
        }
        let all: Vec<_> = told.iter().collect();
        assert_eq!(all.iter().filter(|t| **t == "result").count(), AT_FIRST);
        assert_eq!(all.len(), AT_FIRST + 1);
    }

    #[tokio::test]
    async fn calls_beyond_all_that_may_wait_are_refused() {
        let pool = pool();
        let mut held = Vec::new();
        let (free, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(Mutex::new(wait));
        for _ in 0..MAX_WAITING {
            let wait = std::sync::Arc::clone(&wait);
            let mut call = Box::pin(pool.run(move || wait.lock().unwrap().recv().is_err()));
            assert!(poll!(&mut call).is_pending());
            held.push(call);
        }
        let refused = async {
            loop {
                match timeout(Duration::ZERO, pool.run(|| ())).await {
                    Ok(Err(error)) => return error,
                    // A thread took one of those that wait.
                    Err(_) => {}
                    Ok(Ok(())) => panic!("all threads are held"),
                }
            }
        };
        assert_eq!(refused.await.kind(), io::ErrorKind::ResourceBusy);
        drop(free);
        for call in held {
            assert!(call.await.unwrap());
        }
    }
}
