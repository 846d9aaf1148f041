//! Which API versions may open a control socket (`coordination.md` §6).

/// The newest version whose messages we know. Every 2.x is let in: calls that we do not have are answered so.
const NEWEST: (u32, u32) = (2, 13);

/// Checks a version that a peer asks for.
///
/// # Errors
/// With the text that the peer is shown.
pub(super) fn check(text: &str) -> Result<(), String> {
    let number = |part: &str| part.parse::<u32>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
    let Some((major, _)) = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?))) else {
        return Err(format!("invalid version string: {text}"));
    };
    let (our_major, our_minor) = NEWEST;
    if major > our_major {
        return Err(format!("server is at version {our_major}.{our_minor}, behind requested major version {text}"));
    }
    if major < our_major {
        return Err(format!("version {text} is no longer supported"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_major_version_is_let_in_and_no_other() {
        for good in ["2.0", "2.13", "2.99"] {
            assert_eq!(check(good), Ok(()));
        }
        assert_eq!(check("9.9").unwrap_err(), "server is at version 2.13, behind requested major version 9.9");
        assert_eq!(check("1.0").unwrap_err(), "version 1.0 is no longer supported");
        for bad in ["", "2", "2.", ".0", "2.0.0", "+2.0", "2.x", "2.99999999999"] {
            assert_eq!(check(bad).unwrap_err(), format!("invalid version string: {bad}"));
        }
    }
}
