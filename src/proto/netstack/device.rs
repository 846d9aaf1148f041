//! The in-memory device between a flow's TCP engine and a packet buffer: at most one packet in, one out.

use crate::wire::ip::MTU;
use smoltcp::{
    phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium},
    time,
};

/// One turn of a flow: an optional packet to read and the place for the one it may emit.
pub(super) struct Port<'b> {
    input: Option<&'b [u8]>,
    output: &'b mut [u8],
    /// Length of the emitted packet, 0 when there is none.
    emitted: usize,
}

impl<'b> Port<'b> {
    /// A port that delivers `input`, when given, and emits into `output`, as far as it fits.
    pub(super) fn new(input: Option<&'b [u8]>, output: &'b mut [u8]) -> Self {
        Self { input, output, emitted: 0 }
    }

    /// Length of the emitted packet, if there was one.
    pub(super) fn emitted(&self) -> Option<usize> {
        (self.emitted > 0).then_some(self.emitted)
    }
}

impl phy::Device for Port<'_> {
    type RxToken<'a>
        = Input<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Output<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: time::Instant) -> Option<(Input<'_>, Output<'_>)> {
        let input = self.input.take()?;
        Some((Input(input), Output { buffer: self.output, emitted: &mut self.emitted }))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Output<'_>> {
        (self.emitted == 0).then_some(Output { buffer: self.output, emitted: &mut self.emitted })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = MTU;
        // On receipt WireGuard has authenticated the bytes; on sending the flow fills them in, faster.
        caps.checksum = ChecksumCapabilities::ignored();
        caps
    }
}

pub(super) struct Input<'a>(&'a [u8]);

impl phy::RxToken for Input<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Output<'a> {
    buffer: &'a mut [u8],
    emitted: &'a mut usize,
}

impl phy::TxToken for Output<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.buffer.get_mut(..len) {
            Some(slot) => {
                *self.emitted = len;
                f(slot)
            }
            // At its own turn the engine respects the MTU, and immediate answers are short.
            None => f(&mut vec![0; len]),
        }
    }
}
