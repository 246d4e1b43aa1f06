//! Why a run was refused: each layer of the sandbox by its name.

use serde::{Deserialize, Serialize};

/// One thing that holds a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A user namespace.
    UserNamespace,
    /// A mount namespace.
    MountNamespace,
    /// A process namespace.
    PidNamespace,
    /// A network namespace without any interface up.
    NetNamespace,
    /// A namespace of System V objects and message queues.
    IpcNamespace,
    /// A namespace of host names.
    UtsNamespace,
    /// A namespace of control groups.
    CgroupNamespace,
    /// A user id that nothing else has, where root runs the sandbox.
    OwnUser,
    /// A root folder with nothing but what was asked for.
    Root,
    /// A `/proc` that shows the processes of the run alone.
    Proc,
    /// A control group that limits memory.
    MemoryGroup,
    /// A control group that limits processes.
    PidsGroup,
    /// A control group that counts processor time.
    CpuGroup,
    /// Limits of each process.
    ProcessLimits,
    /// No capability, and no way to gain one.
    NoPrivileges,
    /// Landlock rules on files and sockets.
    Landlock,
    /// The list of permitted system calls.
    SystemCalls,
}

impl Layer {
    /// Every layer, in the order in which they are put up.
    pub const ALL: [Self; 17] = [
        Self::MemoryGroup,
        Self::PidsGroup,
        Self::CpuGroup,
        Self::UserNamespace,
        Self::MountNamespace,
        Self::PidNamespace,
        Self::NetNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::OwnUser,
        Self::Root,
        Self::Proc,
        Self::NoPrivileges,
        Self::ProcessLimits,
        Self::Landlock,
        Self::SystemCalls,
    ];

    /// What stands in where a caller allows the layer to be missing; `None` where nothing can.
    #[must_use]
    pub fn stand_in(self) -> Option<&'static str> {
        match self {
            Self::MemoryGroup => Some("a memory limit for each process instead of all together"),
            Self::PidsGroup => Some("the process limit of the user id"),
            Self::CpuGroup => Some("a processor-time limit for each process instead of all together"),
            Self::Proc => Some("no /proc at all"),
            Self::Landlock => Some("the mount and network namespaces and the list of system calls alone"),
            _ => None,
        }
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = serde_json::to_value(self).ok();
        f.write_str(name.as_ref().and_then(serde_json::Value::as_str).unwrap_or("unknown layer"))
    }
}

impl std::str::FromStr for Layer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(|layer| layer.to_string()).join(", ");
        let known = Self::ALL.into_iter().find(|layer| layer.to_string() == name);
        known.ok_or_else(|| format!("no layer `{name}`; the layers are {}", names()))
    }
}

/// Why a command did not run, or why its result is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A layer is missing.
    #[error("the layer `{layer}` is missing: {detail}; {}", advice(*layer))]
    Missing {
        /// The layer.
        layer: Layer,
        /// What the system said.
        detail: String,
    },
    /// A layer that nothing can stand in for was to be optional.
    #[error("the layer `{layer}` cannot be left out: nothing stands in for it; take it off the list")]
    Indispensable {
        /// The layer.
        layer: Layer,
    },
    /// The command cannot be run as it was written.
    #[error("the command for the sandbox is wrong: {0}; correct it and run again")]
    Command(String),
    /// The program could not be started inside.
    #[error("starting {program} inside the sandbox: {detail}; check its path, its libraries and the mounts")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        detail: String,
    },
    /// The host failed.
    #[error("{what}: {source}; this says nothing about the command, run it again")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The first process of the run ended without a word about the command.
    #[error("the run was lost: {0}; this says nothing about the command, run it again")]
    Lost(String),
    /// Something of the run was still there afterwards.
    #[error("the run left something behind: {0}; its result is not used")]
    Left(String),
}

fn advice(layer: Layer) -> &'static str {
    match layer {
        Layer::MemoryGroup | Layer::PidsGroup | Layer::CpuGroup => {
            "delegate a control group to this user or run with one that may be written, or allow the layer to be missing"
        }
        Layer::Landlock => "use a kernel with Landlock enabled, or allow the layer to be missing",
        Layer::Proc => {
            "run on a host or in a container whose own /proc is not covered, or allow the layer to be missing"
        }
        _ => "run on a host, or in a container, that permits it",
    }
}

/// Adds what was being done to an error of the host.
pub(crate) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> SandboxError {
    move |source| SandboxError::Host { what, source }
}
