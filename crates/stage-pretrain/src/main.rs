//! The program `stage-pretrain`.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer::stage::main::<stage_pretrain::Pretrain>()
}
