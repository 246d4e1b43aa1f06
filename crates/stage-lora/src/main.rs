//! The program `stage-lora`.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer::stage::main::<stage_lora::LoraStage>()
}
