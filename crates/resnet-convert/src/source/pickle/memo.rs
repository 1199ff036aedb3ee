//! Pickle memo.

use std::collections::HashMap;

use super::value::Value;
use crate::error::Fault;

/// Memoized values: a vector for consecutive indices, a map for others, which only hostile files have.
#[derive(Default)]
pub(super) struct Memo {
    dense: Vec<Value>,
    sparse: HashMap<u32, Value>,
}

impl Memo {
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.dense.len().saturating_add(self.sparse.len())).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, index: u32) -> Option<Value> {
        self.dense.get(index as usize).or_else(|| self.sparse.get(&index)).copied()
    }

    pub(super) fn put(&mut self, index: u32, value: Value) -> Result<(), Fault> {
        super::check_stack(self.len() as usize)?;
        if let Some(slot) = self.dense.get_mut(index as usize) {
            *slot = value;
        } else if self.dense.len() == index as usize && !self.sparse.contains_key(&index) {
            self.dense.push(value);
        } else {
            self.sparse.insert(index, value);
        }
        Ok(())
    }
}
