//! Cuts a byte stream into frames. Whole frames are handed out from the caller's buffer, only cut ones are copied.

use crate::wire::derp::{HEADER, Header};

/// What to do with a frame, decided by its header before anything is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Collect and hand it out. The judge has bounded its length.
    Take,
    /// Pass over it, however long it claims to be, without keeping a byte.
    Skip,
}

/// The unfinished end of a stream.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// A frame cut by the end of the last input, with its header.
    partial: Vec<u8>,
    /// The frame in `partial` was handed out and goes with the next call.
    spent: bool,
    /// Bytes of a skipped frame that are still to come.
    skip: usize,
}

/// A buffer larger than this is given back when a frame is done.
const KEEP: usize = 4_096;

impl Inbox {
    pub(super) const fn new() -> Self {
        Self { partial: Vec::new(), spent: false, skip: 0 }
    }

    /// Takes the next frame off `input`; `None` when the rest of `input` is kept and more is needed.
    ///
    /// # Errors
    /// What `judge` says of a header.
    pub(super) fn next<'a, 'b: 'a, E>(
        &'a mut self,
        input: &mut &'b [u8],
        judge: impl Fn(Header) -> Result<Judgement, E>,
    ) -> Result<Option<(u8, &'a [u8])>, E> {
        if std::mem::take(&mut self.spent) {
            self.partial.clear();
            self.partial.shrink_to(KEEP);
        }
        loop {
            if self.skip > 0 {
                let (_, rest) = input.split_at(self.skip.min(input.len()));
                self.skip -= input.len() - rest.len();
                *input = rest;
                if self.skip > 0 {
                    return Ok(None);
                }
            }
            if !self.partial.is_empty() {
                break;
            }
            let Some(header) = Header::parse(input) else {
                self.fill(input, HEADER);
                return Ok(None);
            };
            if judge(header)? == Judgement::Skip {
                self.skip = HEADER.saturating_add(header.len);
                continue;
            }
            match input.split_at_checked(HEADER + header.len) {
                Some((frame, rest)) => {
                    *input = rest;
                    return Ok(frame.get(HEADER..).map(|payload| (header.kind, payload)));
                }
                None => {
                    self.fill(input, HEADER + header.len);
                    return Ok(None);
                }
            }
        }
        // A frame that an earlier input began.
        self.fill(input, HEADER);
        let Some(header) = Header::parse(&self.partial) else { return Ok(None) };
        if self.partial.len() == HEADER && judge(header)? == Judgement::Skip {
            self.partial.clear();
            self.skip = header.len;
            return self.next(input, judge);
        }
        self.fill(input, HEADER + header.len);
        if self.partial.len() < HEADER + header.len {
            return Ok(None);
        }
        self.spent = true;
        Ok(self.partial.get(HEADER..).map(|payload| (header.kind, payload)))
    }

    /// Moves bytes from `input` until `partial` holds `len`.
    fn fill(&mut self, input: &mut &[u8], len: usize) {
        let missing = len.saturating_sub(self.partial.len());
        let (head, rest) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(head);
        *input = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::NodeKey, wire::derp::Frame};
    use proptest::prelude::*;

    const SKIPPED: u8 = 0x42;

    fn judge(header: Header) -> Result<Judgement, Header> {
        match header.kind {
            SKIPPED => Ok(Judgement::Skip),
            _ if header.len > 1_000 => Err(header),
            _ => Ok(Judgement::Take),
        }
    }

    /// All frames out of a stream that arrives in pieces of the given sizes.
    fn collect(stream: &[u8], cuts: &[usize]) -> Result<Vec<(u8, Vec<u8>)>, Header> {
        let (mut inbox, mut got, mut rest) = (Inbox::default(), Vec::new(), stream);
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (mut piece, after) = rest.split_at(cuts.next().copied().unwrap_or(usize::MAX).clamp(1, rest.len()));
            rest = after;
            while let Some((kind, payload)) = inbox.next(&mut piece, judge)? {
                got.push((kind, payload.to_vec()));
            }
            assert!(piece.is_empty());
        }
        Ok(got)
    }

    #[test]
    fn a_frame_too_long_is_refused_at_its_header_even_when_cut() {
        for cuts in [&[][..], &[1], &[3]] {
            assert_eq!(collect(&[9, 0, 0, 4, 0], cuts), Err(Header { kind: 9, len: 1_024 }));
        }
    }

    #[test]
    fn a_skipped_frame_leaves_nothing_behind() {
        let mut inbox = Inbox::default();
        let mut input: &[u8] = &[SKIPPED, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(inbox.next(&mut input, judge), Ok(None));
        for _ in 0..100 {
            let mut input: &[u8] = &[0; 65_536];
            assert_eq!(inbox.next(&mut input, judge), Ok(None));
        }
        assert_eq!(inbox.partial.capacity(), 0);
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_the_stream_is_cut(
            sizes in proptest::collection::vec((0usize..200, any::<bool>()), 0..12),
            cuts in proptest::collection::vec(1usize..90, 0..6),
        ) {
            let (mut stream, mut expect) = (Vec::new(), Vec::new());
            for (at, (len, skipped)) in sizes.iter().enumerate() {
                let payload = vec![u8::try_from(at).unwrap(); *len];
                if *skipped {
                    stream.extend_from_slice(&[SKIPPED, 0, 0, 0, u8::try_from(*len).unwrap()]);
                    stream.extend_from_slice(&payload);
                } else {
                    Frame::SendPacket { to: NodeKey::from([7; 32]), packet: &payload }.write(&mut stream);
                    expect.push((4, [[7; 32].as_slice(), &payload].concat()));
                }
            }
            prop_assert_eq!(collect(&stream, &cuts), Ok(expect));
        }
    }
}
