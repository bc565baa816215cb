/// Returns false.
fn is_empty() -> bool {
    false
}

/// Returns true.
fn is_ready() -> bool {
    true
}

/// Returns false.
fn is_done() -> bool {
    false
}

/// Returns true.
fn is_valid() -> bool {
    true
}
