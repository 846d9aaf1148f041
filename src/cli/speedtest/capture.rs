//! The file of `--pcap-file`, written beside everything else.

use crate::net::PCAP_HEADER;
use anyhow::{Context as _, anyhow};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Turns of the data loop that may wait for the disk.
const WAITING: usize = 64;
/// What the disk gets at the end.
const LIMIT: Duration = Duration::from_secs(30);

/// A capture file that a thread writes.
#[derive(Debug)]
pub(super) struct CaptureFile {
    path: PathBuf,
    written: oneshot::Receiver<io::Result<()>>,
}

impl CaptureFile {
    /// Makes the file, for its owner only: it will hold what the tunnel hides. What is sent is written until the sender is
    /// dropped.
    pub(super) fn create(path: &Path) -> anyhow::Result<(Self, mpsc::Sender<Vec<u8>>)> {
        let open = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(&PCAP_HEADER)?;
            Ok::<_, io::Error>(file)
        };
        let file = open().with_context(|| format!("cannot write the packet capture {}", path.display()))?;
        let (sender, records) = mpsc::channel(WAITING);
        let (told, written) = oneshot::channel();
        thread::Builder::new().name("packet capture".into()).spawn(move || {
            // Nobody waits for the result of a command that was interrupted.
            let _ = told.send(write(file, records));
        })?;
        Ok((Self { path: path.to_owned(), written }, sender))
    }

    /// Waits until everything is written.
    pub(super) async fn finish(self) -> anyhow::Result<()> {
        let written = timeout(LIMIT, self.written).await;
        let failed = || format!("cannot write the packet capture {}", self.path.display());
        match written {
            Ok(Ok(written)) => written.with_context(failed),
            Ok(Err(_)) => Err(anyhow!("the thread that writes it has ended")).with_context(failed),
            Err(_) => Err(anyhow!("the disk is too slow")).with_context(failed),
        }
    }
}

fn write(mut file: File, mut records: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(records) = records.blocking_recv() {
        file.write_all(&records)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_holds_everything_in_order_and_is_its_owners() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        let (file, sender) = CaptureFile::create(&path).unwrap();
        for n in 0..200_u8 {
            sender.send(vec![n; 3]).await.unwrap();
        }
        drop(sender);
        file.finish().await.unwrap();
        let want: Vec<u8> = PCAP_HEADER.into_iter().chain((0..200).flat_map(|n| [n; 3])).collect();
        assert_eq!(std::fs::read(&path).unwrap(), want);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_made_or_a_full_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/x.pcap");
        let said = format!("{:#}", CaptureFile::create(&missing).unwrap_err());
        assert!(said.contains("no/x.pcap") && said.contains("No such file"), "{said}");
        let full = Path::new("/dev/full");
        if full.exists() {
            assert!(format!("{:#}", CaptureFile::create(full).unwrap_err()).contains("/dev/full"));
        }
    }
}
