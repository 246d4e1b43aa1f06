//! Landlock: a second wall around files, sockets and signals, should a mount or a namespace have a hole.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

/// The newest rules asked for; a kernel that knows fewer enforces those.
const NEWEST: ABI = ABI::V6;

/// Whether the kernel enforces Landlock at all.
///
/// # Errors
/// What the kernel says where it does not.
pub(super) fn supported() -> io::Result<()> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = ruleset.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create);
    ruleset.map(drop).map_err(io::Error::other)
}

/// Lets this process read and execute everything it sees, write below `writable` and to `/dev/null`, and reach no TCP
/// port, no abstract socket and no process from before.
///
/// # Errors
/// The system's.
pub(super) fn restrict<'a>(writable: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    let writable: Vec<&Path> = writable.chain([Path::new("/dev/null")]).collect();
    let apply = || -> Result<_, RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rules(path_beneath_rules(["/"], AccessFs::from_read(NEWEST)))?
            .add_rules(path_beneath_rules(writable, AccessFs::from_all(NEWEST)))?
            .restrict_self()
    };
    let status = apply().map_err(io::Error::other)?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err(io::Error::other("the kernel did not enforce the rules"));
    }
    Ok(())
}
