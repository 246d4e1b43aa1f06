//! The program `stage-dpo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer::stage::main::<stage_dpo::Dpo>()
}
