//! The loop's streams: every flow that has an owner, and the moving of bytes between its rings and the node.

use crate::{
    base::{FlowId, Instant},
    driver::pipe::{Broken, Key, LoopEnd, OwnerEnd, pipe},
    proto::{
        netstack::{CloseReason, ReadState},
        node::Node,
    },
};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

struct Stream {
    flow: FlowId,
    end: LoopEnd,
    /// The flow knows that no more is to be sent.
    closed: bool,
    /// Why the connection is over, once the node has said so.
    over: Option<CloseReason>,
}

/// All streams of a node.
pub(super) struct Flows {
    streams: FxHashMap<Key, Stream>,
    doorbell: UnboundedSender<Key>,
    /// Streams whose owner did something.
    pub(super) dirty: UnboundedReceiver<Key>,
    /// No stream sends anything new.
    closing: bool,
}

/// Flow ids are never reused, so neither are keys.
const fn key(flow: FlowId) -> Key {
    (flow.generation as Key) << 32 | flow.slot as Key
}

impl Flows {
    pub(super) fn new() -> Self {
        let (doorbell, dirty) = unbounded_channel();
        Self { streams: FxHashMap::default(), doorbell, dirty, closing: false }
    }

    /// Makes a stream of a flow and returns its owner's end.
    pub(super) fn open(&mut self, flow: FlowId) -> OwnerEnd {
        let (owner, end) = pipe(key(flow), self.doorbell.clone());
        self.streams.insert(key(flow), Stream { flow, end, closed: false, over: None });
        owner
    }

    /// The node has news of a flow.
    pub(super) fn handle_news(&mut self, now: Instant, node: &mut Node, flow: FlowId, over: Option<CloseReason>) {
        if let Some(stream) = self.streams.get_mut(&key(flow)) {
            stream.over = stream.over.or(over);
            self.service(now, node, key(flow));
        }
    }

    /// Moves what can move, and tells both sides what the other wants.
    pub(super) fn service(&mut self, now: Instant, node: &mut Node, key: Key) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let Stream { flow, end, closed, over } = stream;
        let flow = *flow;
        let wishes = end.look();
        if wishes.abort {
            node.abort(now, flow);
            self.streams.remove(&key);
            return;
        }
        loop {
            let bytes = node.readable(flow);
            // Nobody reads any more: what arrives is thrown away, so that the peer can finish.
            let moved = if wishes.gone { bytes.len() } else { end.fill(bytes) };
            if moved == 0 {
                break;
            }
            node.consume(flow, moved);
        }
        let empty = end.drain(|bytes| node.write(flow, bytes));
        if empty && (wishes.close_write || wishes.gone || self.closing) && !*closed {
            *closed = true;
            node.close_write(flow);
        }
        if node.readable(flow).is_empty() {
            match (node.read_state(flow), *over) {
                (ReadState::Finished, _) | (_, Some(CloseReason::Finished)) => end.finish(),
                _ => {}
            }
            if let Some(why) = *over {
                end.fail(broken(why));
            }
        }
        if wishes.gone && (empty || over.is_some()) {
            node.release(now, flow);
            self.streams.remove(&key);
        } else if wishes.gone {
            node.linger(now, flow);
        }
    }

    /// This node is closing: what was written is sent, then every stream ends.
    pub(super) fn close_all(&mut self, now: Instant, node: &mut Node) {
        self.closing = true;
        let keys: Vec<Key> = self.streams.keys().copied().collect();
        for key in keys {
            self.service(now, node, key);
        }
    }

    /// Whether everything that owners wrote has been handed to the node.
    pub(super) fn are_drained(&self) -> bool {
        self.streams.values().all(|stream| stream.closed || stream.over.is_some())
    }
}

const fn broken(why: CloseReason) -> Broken {
    match why {
        CloseReason::Finished => Broken::Over,
        CloseReason::Reset | CloseReason::Refused | CloseReason::Exhausted => Broken::Reset,
        CloseReason::TimedOut => Broken::TimedOut,
        CloseReason::PeerRestarted => Broken::PeerRestarted,
        CloseReason::PeerLost => Broken::PeerGone,
    }
}
