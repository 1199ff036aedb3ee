//! Home of the example programs beside this file; cargo wants a target of its own here.
