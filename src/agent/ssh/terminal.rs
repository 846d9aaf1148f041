//! A session's terminal: its size, and the modes a client asks for (RFC 4254 §8).

use russh::Pty as Mode;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcsetattr,
    tcsetwinsize,
};
use std::os::fd::AsFd;

/// Columns and rows in characters, width and height in pixels, as SSH orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Size {
    pub(super) columns: u32,
    pub(super) rows: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Size {
    /// Tells the terminal; the kernel sends SIGWINCH to what runs in it.
    pub(super) fn apply(self, terminal: impl AsFd) -> rustix::io::Result<()> {
        let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: clamp(self.rows),
            ws_col: clamp(self.columns),
            ws_xpixel: clamp(self.width),
            ws_ypixel: clamp(self.height),
        };
        tcsetwinsize(terminal, size)
    }
}

/// What a `pty-req` asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: String,
    pub(super) size: Size,
    pub(super) modes: Vec<(Mode, u32)>,
}

/// Applies the modes the platform knows; the others mean nothing here.
pub(super) fn set_modes(terminal: impl AsFd, modes: &[(Mode, u32)]) -> rustix::io::Result<()> {
    if modes.is_empty() {
        return Ok(());
    }
    let mut attributes = tcgetattr(&terminal)?;
    for &(mode, value) in modes {
        set_mode(&mut attributes, mode, value);
    }
    tcsetattr(&terminal, OptionalActions::Now, &attributes)
}

fn set_mode(to: &mut Termios, mode: Mode, value: u32) {
    if let Some(index) = special_code(mode) {
        // 255 means "none" on the wire, 0 in the kernel.
        to.special_codes[index] = match u8::try_from(value) {
            Ok(code) if code != u8::MAX => code,
            _ => 0,
        };
        return;
    }
    let on = value != 0;
    if let Some(flag) = input_mode(mode) {
        to.input_modes.set(flag, on);
    } else if let Some(flag) = local_mode(mode) {
        to.local_modes.set(flag, on);
    } else if let Some(flag) = output_mode(mode) {
        to.output_modes.set(flag, on);
    } else if let Some(flag) = control_mode(mode) {
        // The two sizes share bits: only the one that is switched on counts.
        if !matches!(mode, Mode::CS7 | Mode::CS8) {
            to.control_modes.set(flag, on);
        } else if on {
            to.control_modes.remove(ControlModes::CSIZE);
            to.control_modes.insert(flag);
        }
    }
}

fn special_code(mode: Mode) -> Option<SpecialCodeIndex> {
    Some(match mode {
        Mode::VINTR => SpecialCodeIndex::VINTR,
        Mode::VQUIT => SpecialCodeIndex::VQUIT,
        Mode::VERASE => SpecialCodeIndex::VERASE,
        Mode::VKILL => SpecialCodeIndex::VKILL,
        Mode::VEOF => SpecialCodeIndex::VEOF,
        Mode::VEOL => SpecialCodeIndex::VEOL,
        Mode::VEOL2 => SpecialCodeIndex::VEOL2,
        Mode::VSTART => SpecialCodeIndex::VSTART,
        Mode::VSTOP => SpecialCodeIndex::VSTOP,
        Mode::VSUSP => SpecialCodeIndex::VSUSP,
        Mode::VREPRINT => SpecialCodeIndex::VREPRINT,
        Mode::VWERASE => SpecialCodeIndex::VWERASE,
        Mode::VLNEXT => SpecialCodeIndex::VLNEXT,
        Mode::VDISCARD => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input_mode(mode: Mode) -> Option<InputModes> {
    Some(match mode {
        Mode::IGNPAR => InputModes::IGNPAR,
        Mode::PARMRK => InputModes::PARMRK,
        Mode::INPCK => InputModes::INPCK,
        Mode::ISTRIP => InputModes::ISTRIP,
        Mode::INLCR => InputModes::INLCR,
        Mode::IGNCR => InputModes::IGNCR,
        Mode::ICRNL => InputModes::ICRNL,
        Mode::IXON => InputModes::IXON,
        Mode::IXANY => InputModes::IXANY,
        Mode::IXOFF => InputModes::IXOFF,
        Mode::IMAXBEL => InputModes::IMAXBEL,
        #[cfg(any(target_os = "linux", target_os = "macos"))]
        Mode::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local_mode(mode: Mode) -> Option<LocalModes> {
    Some(match mode {
        Mode::ISIG => LocalModes::ISIG,
        Mode::ICANON => LocalModes::ICANON,
        Mode::ECHO => LocalModes::ECHO,
        Mode::ECHOE => LocalModes::ECHOE,
        Mode::ECHOK => LocalModes::ECHOK,
        Mode::ECHONL => LocalModes::ECHONL,
        Mode::NOFLSH => LocalModes::NOFLSH,
        Mode::TOSTOP => LocalModes::TOSTOP,
        Mode::IEXTEN => LocalModes::IEXTEN,
        Mode::ECHOCTL => LocalModes::ECHOCTL,
        Mode::ECHOKE => LocalModes::ECHOKE,
        Mode::PENDIN => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output_mode(mode: Mode) -> Option<OutputModes> {
    Some(match mode {
        Mode::OPOST => OutputModes::OPOST,
        Mode::ONLCR => OutputModes::ONLCR,
        Mode::OCRNL => OutputModes::OCRNL,
        Mode::ONOCR => OutputModes::ONOCR,
        Mode::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}

fn control_mode(mode: Mode) -> Option<ControlModes> {
    Some(match mode {
        Mode::CS7 => ControlModes::CS7,
        Mode::CS8 => ControlModes::CS8,
        Mode::PARENB => ControlModes::PARENB,
        Mode::PARODD => ControlModes::PARODD,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn modes_and_size_reach_the_terminal() {
        let (pty, pts) = crate::agent::ssh::process::open_terminal().unwrap();
        let modes = [
            (Mode::ECHO, 0),
            (Mode::VINTR, 7),
            (Mode::VQUIT, 255),
            (Mode::ONLCR, 0),
            (Mode::IXANY, 1),
            (Mode::TTY_OP_OSPEED, 38400),
        ];
        set_modes(&pts, &modes).unwrap();
        let now = tcgetattr(&pts).unwrap();
        assert!(!now.local_modes.contains(LocalModes::ECHO));
        assert!(!now.output_modes.contains(OutputModes::ONLCR));
        assert!(now.input_modes.contains(InputModes::IXANY));
        assert_eq!((now.special_codes[SpecialCodeIndex::VINTR], now.special_codes[SpecialCodeIndex::VQUIT]), (7, 0));
        Size { columns: 100, rows: 70_000, width: 0, height: 1 }.apply(&pty).unwrap();
        let size = rustix::termios::tcgetwinsize(&pts).unwrap();
        assert_eq!((size.ws_col, size.ws_row, size.ws_ypixel), (100, u16::MAX, 1));
    }
}
