//! What the launcher and the helper tell each other over their socket: frames of JSON.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Layer;
use super::types::Command;

/// Largest frame; a plan with a long list of mounts is far smaller.
const MAX_FRAME: u32 = 16 << 20;

/// Descriptors that travel with the plan: standard input, output and error of the command.
pub(crate) const STREAMS: usize = 3;

/// What the helper has to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Process id of the launcher.
    pub(crate) launcher: i32,
    /// The command, without its standard input.
    pub(crate) command: Command,
    /// Whether supplementary groups can and must be dropped.
    pub(crate) drop_groups: bool,
    /// Layers that may be missing.
    pub(crate) allowed: Vec<Layer>,
    /// Layers that the launcher already knows to be missing.
    pub(crate) missing: Vec<Layer>,
}

/// What the helper reports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    /// The first process of the run exists and waits for its ids and its groups.
    First { pid: i32 },
    /// A layer is missing and was allowed to be.
    Weaker(Layer),
    /// A layer is missing; nothing was run.
    Missing { layer: Layer, detail: String },
    /// The command is wrong; nothing was run.
    Wrong(String),
    /// The program did not start.
    Start(String),
    /// The program ended.
    Ended { code: Option<i32>, signal: Option<i32>, cpu_us: u64 },
}

/// Encodes a frame.
///
/// # Errors
/// A value that JSON cannot hold, such as a path that is not UTF-8.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok([&length.to_le_bytes(), body.as_slice()].concat())
}

/// Sends a frame.
///
/// # Errors
/// The socket's.
pub(crate) fn send<T: Serialize>(mut to: impl Write, value: &T) -> io::Result<()> {
    to.write_all(&encode(value)?)
}

/// Receives a frame whose length is already known.
///
/// # Errors
/// The socket's, an overlong frame, or one that does not parse.
pub(crate) fn body<T: DeserializeOwned>(mut from: impl Read, length: [u8; 4]) -> io::Result<T> {
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Receives a frame; `None` when the other side has closed.
///
/// # Errors
/// As [`body`].
pub(crate) fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => body(from, length).map(Some),
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_bad_ones_are_refused() {
        let frame = encode(&Note::First { pid: 7 }).unwrap();
        assert!(matches!(receive::<Note>(frame.as_slice()).unwrap(), Some(Note::First { pid: 7 })));
        assert!(receive::<Note>(&[][..]).unwrap().is_none());
        assert!(receive::<Note>(&frame[..frame.len() - 1]).is_err(), "a frame that was cut");
        assert!(receive::<Note>(&[255, 255, 255, 255, 0][..]).is_err(), "a frame of 4 GiB");
    }
}
