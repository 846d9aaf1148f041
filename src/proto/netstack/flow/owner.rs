//! A flow as its owner sees it: reading, writing, closing, news.

use super::{BACKLOG, CloseReason, Flow, LINGER, MSS, News, ReadState, WRITABLE};
use crate::base::Instant;
use smoltcp::socket::tcp::State;

impl Flow {
    /// The owner is gone, but not all of its bytes are here yet: the time in which they may be delivered begins now.
    pub(in crate::proto::netstack) fn linger(&mut self, now: Instant) {
        self.lingers.get_or_insert(now + LINGER);
    }

    /// Until when a flow without owner may last.
    pub(in crate::proto::netstack) fn patience(&self) -> Option<Instant> {
        [self.released, self.lingers].into_iter().flatten().min()
    }

    /// The owner is gone: what it wrote is delivered, what arrives is thrown away.
    pub(in crate::proto::netstack) fn release(&mut self, now: Instant) {
        self.linger(now);
        self.released = self.lingers;
        if self.end.is_none() && self.state() == State::SynSent {
            self.end = Some(CloseReason::Finished);
        }
        self.close_write();
        self.discard();
    }

    /// Throws away what has arrived. Whether the peer keeps sending although it has everything from us: then it must
    /// be told that nobody listens.
    pub(in crate::proto::netstack) fn discard(&mut self) -> bool {
        let waiting = self.view().recv_queue();
        if waiting == 0 {
            return false;
        }
        while let Ok(taken @ 1..) = self.tcp().recv(|bytes| (bytes.len(), bytes.len())) {
            self.stats.read += taken as u64;
        }
        self.consumed = 0;
        self.state() == State::FinWait2
    }

    /// Bytes that have arrived in order, as far as they lie in one piece.
    pub(in crate::proto::netstack) fn readable(&mut self) -> &[u8] {
        let consumed = self.consumed;
        self.tcp().peek(usize::MAX).ok().and_then(|bytes| bytes.get(consumed..)).unwrap_or_default()
    }

    /// Takes `n` bytes off what [`Self::readable`] shows. Whether the engine should get a turn, to open its window.
    ///
    /// The engine tells a closed window's opening byte by byte; so bytes are given back to it in batches.
    pub(in crate::proto::netstack) fn consume(&mut self, n: usize) -> bool {
        let whole = self.tcp().peek(usize::MAX).map_or(0, <[u8]>::len);
        self.consumed = (self.consumed + n).min(whole);
        self.told_readable = false;
        if self.consumed < 2 * MSS && self.consumed < whole {
            return false;
        }
        let taken = std::mem::take(&mut self.consumed);
        let taken = self.tcp().recv(|bytes| (taken.min(bytes.len()), taken.min(bytes.len()))).unwrap_or(0);
        self.stats.read += taken as u64;
        taken > 0
    }

    /// What reading can still bring.
    pub(in crate::proto::netstack) fn read_state(&self) -> ReadState {
        if self.view().recv_queue() > self.consumed {
            ReadState::Open
        } else if self.fin_seen {
            ReadState::Finished
        } else if self.end.is_some() {
            ReadState::Reset
        } else {
            ReadState::Open
        }
    }

    /// How many bytes [`Self::write`] takes now.
    pub(in crate::proto::netstack) fn room(&self) -> usize {
        let socket = self.view();
        if self.end.is_some() || self.fin_wanted || !socket.may_send() {
            return 0;
        }
        let free = socket.send_capacity() - socket.send_queue();
        let limit = match self.starts_over {
            // The engine's window is smaller; what waits behind it must not grow old.
            true => self.window.limit().min(2 * self.in_flight() as usize + BACKLOG),
            false => self.window.limit(),
        };
        free.min(limit.saturating_sub(socket.send_queue()))
    }

    /// Takes bytes to send, as many as there is room for.
    pub(in crate::proto::netstack) fn write(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(self.room());
        let taken = data.get(..n).and_then(|data| self.tcp().send_slice(data).ok()).unwrap_or(0);
        self.stats.written += taken as u64;
        self.wants_write = taken < data.len() || self.room() == 0;
        if self.wants_write {
            self.window.handle_full();
        }
        taken
    }

    /// Nothing more will be written: a FIN follows the data.
    pub(in crate::proto::netstack) fn close_write(&mut self) {
        if !self.fin_wanted && self.end.is_none() && !self.is_opening() {
            self.tcp().close();
        }
        self.fin_wanted = true;
    }

    /// What has changed for the owner since the last call.
    pub(in crate::proto::netstack) fn news(&mut self) -> News {
        let open = !self.is_opening() && (self.end.is_none() || self.told_connected);
        let connected = open && !self.told_connected && self.state() != State::Closed;
        self.told_connected |= connected;
        let data = self.view().recv_queue() > self.consumed;
        let last = (self.fin_seen || self.end.is_some()) && !self.told_fin;
        let readable = (data && !self.told_readable) || last;
        self.told_readable |= readable;
        self.told_fin |= last;
        let writable = self.wants_write && self.room() >= WRITABLE.min(self.window.limit() / 4).min(self.buffers / 8);
        self.wants_write &= !writable;
        let closed = self.end.filter(|_| !self.told_closed);
        self.told_closed |= closed.is_some();
        News { connected, readable, writable, closed }
    }
}
