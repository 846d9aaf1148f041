//! Programs that a forwarded connection leads to: by TCP, or by a socket in the file system.

use std::{io, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(30);

/// Where one listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The port as SSH carries it: none above 65,535 can be connected to.
    Tcp {
        host: String,
        port: u32,
    },
    Unix(PathBuf),
}

/// A connection to one.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Place {
    pub(crate) async fn connect(&self) -> io::Result<Socket> {
        let connect = async {
            match self {
                Self::Tcp { host, port } => {
                    let port = u16::try_from(*port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(stream))
                }
                Self::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
            }
        };
        timeout(CONNECT, connect).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

impl Socket {
    /// Its two directions; each ends by itself.
    pub(crate) fn into_split(self) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
        }
    }
}
