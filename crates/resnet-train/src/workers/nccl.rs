//! Workers on CUDA devices, one each.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, NcclType, ReduceOp};
use candle_core::{CpuStorage, CudaStorage, DType, Device, InplaceOp1, Layout, Tensor, WithDType};

use super::{Part, Wire};

/// The bytes by which NCCL's workers find each other.
const ID: usize = 128;

/// What a worker says when it asks for them.
const GREETING: &[u8; 8] = b"resnet-1";

/// NCCL's communicator, on a stream of its own: sums are taken while the device computes.
pub struct Nccl {
    comm: Comm,
    device: Device,
}

impl Nccl {
    /// Connects the workers on `device`, each its own; called on the thread that will use it. They meet at `address`, a
    /// host and port of the first worker's machine.
    ///
    /// Errors: another device than CUDA's; nobody met within `timeout`.
    pub fn open(part: Part, address: &str, device: &Device, timeout: Duration) -> Result<Nccl, String> {
        let cuda = device.as_cuda_device().map_err(|e| e.to_string())?;
        let id = meet(part, address, timeout)?;
        let stream = cuda.cuda_stream().context().new_stream().map_err(|e| e.to_string())?;
        let comm = Comm::from_rank(stream, part.rank, part.count, id).map_err(|e| format!("{e:?}"))?;
        Ok(Nccl { comm, device: device.clone() })
    }

    fn stream(&self) -> std::sync::Arc<CudaStream> {
        self.comm.stream()
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Nccl").field("rank", &self.rank()).field("count", &self.count()).finish()
    }
}

/// The first worker makes the id and gives it to all others.
fn meet(part: Part, address: &str, timeout: Duration) -> Result<Id, String> {
    let (told, until) = (|e: std::io::Error| format!("{address}: {e}"), Instant::now() + timeout);
    let late = || format!("{address}: not all workers came within {} s", timeout.as_secs());
    if part.rank > 0 {
        let mut stream = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
                Err(e) => return Err(told(e)),
            }
        };
        stream.set_read_timeout(Some(timeout)).map_err(told)?;
        stream.write_all(GREETING).map_err(told)?;
        let mut bytes = [0u8; ID];
        stream.read_exact(&mut bytes).map_err(told)?;
        return Ok(Id::uninit(bytes.map(|byte| byte as _)));
    }
    let id = Id::new().map_err(|e| format!("{e:?}"))?;
    let bytes = id.internal().map(|byte| byte as u8);
    let listener = TcpListener::bind(address).map_err(told)?;
    listener.set_nonblocking(true).map_err(told)?;
    let mut waiting = part.count - 1;
    while waiting > 0 {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false).map_err(told)?;
                stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(told)?;
                let mut greeting = [0u8; GREETING.len()];
                // Others may knock, too.
                if stream.read_exact(&mut greeting).is_ok() && greeting == *GREETING {
                    stream.write_all(&bytes).map_err(told)?;
                    waiting -= 1;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(late()),
            Err(e) => return Err(told(e)),
        }
    }
    Ok(id)
}

/// Sums a tensor over all workers where it lies.
struct Sum<'a>(&'a Comm);

impl InplaceOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "sum-over-workers"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(candle_core::Error::Msg("NCCL sums on CUDA devices only".into()))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        match storage.dtype() {
            DType::F64 => self.values::<f64>(storage, layout),
            _ => self.values::<f32>(storage, layout),
        }
    }
}

impl Sum<'_> {
    fn values<T: CudaDType + NcclType>(
        &self,
        storage: &mut CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let values = storage.as_cuda_slice_mut::<T>()?;
        if layout.contiguous_offsets() != Some((0, values.len())) {
            return Err(candle_core::Error::Msg("only whole tensors are summed over workers".into()));
        }
        let failed = |e| candle_core::Error::Msg(format!("NCCL: {e:?}"));
        self.0.all_reduce_in_place(values, &ReduceOp::Sum).map(|_| ()).map_err(failed)
    }
}

impl Nccl {
    fn sum_values<T: WithDType>(&self, values: &mut [T]) -> Result<(), String> {
        let told = |e: candle_core::Error| e.to_string();
        let tensor = Tensor::from_slice(&*values, values.len(), &self.device).map_err(told)?;
        self.sum(&tensor)?;
        values.copy_from_slice(&tensor.to_vec1::<T>().map_err(told)?);
        Ok(())
    }

    fn sum(&self, tensor: &Tensor) -> Result<(), String> {
        tensor.inplace_op1(&Sum(&self.comm)).map_err(|e| e.to_string())?;
        // So that a worker that died is noticed on this thread, which nobody waits for without a limit.
        self.stream().synchronize().map_err(|e| e.to_string())
    }
}

impl Wire for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn count(&self) -> usize {
        self.comm.world_size()
    }

    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.sum_values(values)
    }

    fn sum_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        self.sum_values(values)
    }

    fn sum_tensor(&mut self, bucket: &Tensor) -> Result<Tensor, String> {
        // What one gradient is made of may be part of something larger.
        let bucket = bucket.copy().map_err(|e| e.to_string())?;
        self.sum(&bucket)?;
        Ok(bucket)
    }

    fn share(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        // Few bytes, once: each is a number that only the root adds, exact in f32.
        let own = self.rank() == root;
        let mut len = [if own { bytes.len() as f64 } else { 0.0 }];
        self.sum_f64(&mut len)?;
        let number = |i: usize| if own { f32::from(bytes[i]) } else { 0.0 };
        let mut values: Vec<f32> = (0..len[0] as usize).map(number).collect();
        if !values.is_empty() {
            self.sum_f32(&mut values)?;
        }
        *bytes = values.into_iter().map(|value| value as u8).collect();
        Ok(())
    }
}
