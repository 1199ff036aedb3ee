//! Home of the example programs; see the `.rs` files beside this folder.
