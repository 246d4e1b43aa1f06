//! The program `stage-sft`.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer::stage::main::<stage_sft::Sft>()
}
