//! Tests of the readers: every format, every bad input.
