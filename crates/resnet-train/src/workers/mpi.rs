//! Workers that an MPI launcher started.

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence, Root};

use super::Wire;

/// The world of an MPI launcher.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Ends MPI when it is dropped, after `world`.
    _universe: Universe,
}

impl Mpi {
    /// Begins MPI on this thread, the only one that will use it. Error: it was begun before in this process.
    pub fn open() -> Result<Mpi, String> {
        let universe = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, threads) = universe.ok_or("MPI was begun before in this process")?;
        if threads < Threading::Funneled {
            return Err("this MPI library does not allow a program to have threads".into());
        }
        Ok(Mpi { world: universe.world(), _universe: universe })
    }

    fn sum<T: Equivalence + Copy>(&self, values: &mut [T]) {
        let own = values.to_vec();
        self.world.all_reduce_into(&own[..], values, SystemOperation::sum());
    }
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank()).field("count", &self.count()).finish()
    }
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).unwrap_or(0)
    }

    fn count(&self) -> usize {
        usize::try_from(self.world.size()).unwrap_or(1)
    }

    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.sum(values);
        Ok(())
    }

    fn sum_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        self.sum(values);
        Ok(())
    }

    fn share(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        let root = i32::try_from(root).map_err(|e| e.to_string())?;
        let root = self.world.process_at_rank(root);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        let len = usize::try_from(len).map_err(|e| e.to_string())?;
        bytes.resize(len, 0);
        // MPI counts in 32 bits.
        for part in bytes.chunks_mut(1 << 28) {
            root.broadcast_into(part);
        }
        Ok(())
    }
}
