//! kernels-cubecl
