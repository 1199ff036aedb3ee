//! MPI as a transport.

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence, Root};

use super::Transport;

/// The world communicator of an MPI launcher.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Finalizes MPI when dropped, after `world`.
    _universe: Universe,
}

impl Mpi {
    /// Initializes MPI on this thread, the only one that may use it.
    ///
    /// # Errors
    /// MPI was initialized before in this process, or the library does not support threads.
    pub fn open() -> Result<Mpi, String> {
        let universe = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, threads) = universe.ok_or("MPI is already initialized in this process")?;
        if threads < Threading::Funneled {
            return Err("this MPI library does not support threads (MPI_THREAD_FUNNELED)".into());
        }
        Ok(Mpi { world: universe.world(), _universe: universe })
    }

    fn all_reduce<T: Equivalence + Copy>(&self, values: &mut [T]) {
        let own = values.to_vec();
        self.world.all_reduce_into(&own[..], values, SystemOperation::sum());
    }
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank()).field("world_size", &self.world_size()).finish()
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).unwrap_or(0)
    }

    fn world_size(&self) -> usize {
        usize::try_from(self.world.size()).unwrap_or(1)
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.all_reduce(values);
        Ok(())
    }

    fn all_reduce_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        self.all_reduce(values);
        Ok(())
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        let root = i32::try_from(root).map_err(|e| e.to_string())?;
        let root = self.world.process_at_rank(root);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        let len = usize::try_from(len).map_err(|e| e.to_string())?;
        bytes.resize(len, 0);
        // MPI counts in 32 bits.
        for chunk in bytes.chunks_mut(1 << 28) {
            root.broadcast_into(chunk);
        }
        Ok(())
    }
}
