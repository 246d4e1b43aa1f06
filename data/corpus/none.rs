//! Nothing: this package only pins the sources of others.
