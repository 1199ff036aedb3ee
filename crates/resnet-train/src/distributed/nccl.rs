//! NCCL as a transport: gradients are summed on CUDA devices, one per rank; everything else goes over MPI.
//!
//! Needs CUDA to build and has never been run: the project has no machine with several GPUs. It is kept minimal.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CudaStorage, Device, InplaceOp1, Layout, Tensor};

use super::{Mpi, Transport};

/// An NCCL communicator on a separate CUDA stream, next to the MPI world that carried its unique id.
pub struct Nccl {
    mpi: Mpi,
    comm: Comm,
}

impl Nccl {
    /// Initializes MPI and NCCL on this thread, the only one that may use them, for this rank's CUDA device.
    ///
    /// # Errors
    /// `device` is not a CUDA device; MPI or NCCL cannot be initialized.
    pub fn open(device: &Device) -> Result<Nccl, String> {
        let failed = |e| format!("NCCL: {e:?}");
        let cuda = device.as_cuda_device().map_err(|e| e.to_string())?;
        let mut mpi = Mpi::open()?;
        let mut bytes = match mpi.rank() {
            0 => Id::new().map_err(failed)?.internal().iter().map(|&byte| byte as u8).collect(),
            _ => Vec::new(),
        };
        mpi.broadcast(0, &mut bytes)?;
        let id: [u8; 128] = bytes.try_into().map_err(|_| "NCCL: expected a unique id of 128 bytes")?;
        let stream = cuda.cuda_stream().context().new_stream().map_err(|e| e.to_string())?;
        let id = Id::uninit(id.map(|byte| byte as _));
        let comm = Comm::from_rank(stream, mpi.rank(), mpi.world_size(), id).map_err(failed)?;
        Ok(Nccl { mpi, comm })
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Nccl").field("mpi", &self.mpi).finish_non_exhaustive()
    }
}

/// In-place all-reduce of a contiguous `f32` tensor.
struct AllReduce<'a>(&'a Comm);

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "nccl-all-reduce"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(candle_core::Error::Msg("NCCL supports CUDA tensors only".into()))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let values = storage.as_cuda_slice_mut::<f32>()?;
        if layout.contiguous_offsets() != Some((0, values.len())) {
            return Err(candle_core::Error::Msg("NCCL: expected a contiguous tensor".into()));
        }
        let failed = |e| candle_core::Error::Msg(format!("NCCL: {e:?}"));
        self.0.all_reduce_in_place(values, &ReduceOp::Sum).map(|_| ()).map_err(failed)
    }
}

impl Transport for Nccl {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn world_size(&self) -> usize {
        self.mpi.world_size()
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.mpi.all_reduce_f64(values)
    }

    fn all_reduce_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        self.mpi.all_reduce_f32(values)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        self.mpi.broadcast(root, bytes)
    }

    fn all_reduce_tensor(&mut self, bucket: &Tensor) -> Result<Tensor, String> {
        // A single gradient may be a view of a larger tensor.
        let bucket = bucket.copy().map_err(|e| e.to_string())?;
        bucket.device().synchronize().map_err(|e| e.to_string())?;
        bucket.inplace_op1(&AllReduce(&self.comm)).map_err(|e| e.to_string())?;
        // Blocks this thread, not the caller, if a rank has died.
        self.comm.stream().synchronize().map_err(|e| e.to_string())?;
        Ok(bucket)
    }
}
