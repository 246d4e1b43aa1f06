//! The live view: burn-train's terminal renderer on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use burn_train::Interrupter;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress};

use super::{EvalLog, FlopCount, Observe, StepLog};
use crate::TrainError;
use crate::signals::StopSignal;

/// Progress for people.
pub struct Live {
    view: View,
    flops: FlopCount,
    log_every: u64,
    stage: String,
}

enum View {
    /// The renderer reads the keys itself, Ctrl-C included; what the user wants is in its interrupter.
    Terminal(Box<TuiMetricsRendererWrapper>, Interrupter, StopSignal),
    Lines,
}

/// The metrics of the terminal view.
const SHOWN: [&str; 4] = ["loss", "grad_norm", "lr", "tokens_per_s"];

impl Live {
    /// The terminal view where `live` is given and there is a terminal to read from and to write to; its stop key raises
    /// `live`. Plain lines otherwise.
    pub fn new(stage: &str, log_every: u64, flops: FlopCount, live: Option<&StopSignal>) -> Self {
        let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        let view = match live.filter(|_| is_terminal) {
            Some(stop) => {
                let interrupter = Interrupter::new();
                let mut renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), None);
                SHOWN.iter().for_each(|name| renderer.register_metric(definition(name)));
                View::Terminal(Box::new(renderer), interrupter, stop.clone())
            }
            None => View::Lines,
        };
        Self { view, flops, log_every, stage: stage.to_owned() }
    }

    fn line(&self, text: &str) {
        if matches!(self.view, View::Lines) {
            // Nobody may be reading: a closed pipe is no reason to stop training.
            let _ = writeln!(std::io::stdout().lock(), "{}: {text}", self.stage);
        }
    }
}

fn definition(name: &str) -> MetricDefinition {
    MetricDefinition {
        metric_id: MetricId::new(Arc::new(name.to_owned())),
        name: name.to_owned(),
        description: None,
        attributes: MetricAttributes::Numeric(NumericAttributes {
            unit: None,
            higher_is_better: name == "tokens_per_s",
        }),
    }
}

fn state(name: &str, value: f64) -> MetricState {
    let text = if value.abs() < 0.01 { format!("{value:.2e}") } else { format!("{value:.4}") };
    let entry = SerializedEntry::new(text, value.to_string());
    MetricState::Numeric(MetricEntry::new(MetricId::new(Arc::new(name.to_owned())), entry), NumericEntry::Value(value))
}

impl Observe for Live {
    fn step(&mut self, log: &StepLog) -> Result<(), TrainError> {
        let speed = self.flops.of(log);
        if let View::Terminal(renderer, interrupter, stop) = &mut self.view {
            if interrupter.should_stop() {
                stop.request();
            }
            for (name, value) in SHOWN.iter().zip([log.loss, log.grad_norm, log.lr, speed.tokens_per_s]) {
                renderer.update_train(state(name, value));
            }
            let mut progress = TrainingProgress::none();
            progress.global_progress.items_processed = log.step as usize;
            progress.global_progress.items_total = log.last_step as usize;
            let value = ProgressType::Value { tag: "Step".into(), value: log.step as usize };
            renderer.render_train(progress, vec![value]);
        }
        if log.step.is_multiple_of(self.log_every) || log.step == log.last_step || log.skipped {
            let skipped = if log.skipped { "  SKIPPED: not finite" } else { "" };
            let mfu = speed.mfu.map_or(String::new(), |mfu| format!("  MFU {:.1} %", 100.0 * mfu));
            self.line(&format!(
                "step {}/{}  loss {:.4}  grad norm {:.3}  lr {:.2e}  {:.0} tokens/s{mfu}{skipped}",
                log.step, log.last_step, log.loss, log.grad_norm, log.lr, speed.tokens_per_s
            ));
        }
        Ok(())
    }

    fn eval(&mut self, log: &EvalLog) -> Result<(), TrainError> {
        let metrics = log.metrics.iter().map(|metric| format!("{} {:.4}", metric.name, metric.mean()));
        let bits = log.bits_per_byte.map(|value| format!("bits per byte {value:.4}"));
        self.line(&format!("eval at step {}: {}", log.step, metrics.chain(bits).collect::<Vec<_>>().join("  ")));
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{}: {message}", self.stage);
    }
}
