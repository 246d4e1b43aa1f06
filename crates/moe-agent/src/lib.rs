//! moe-agent
