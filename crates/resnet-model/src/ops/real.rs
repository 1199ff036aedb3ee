//! Access to the values of CPU tensors.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType};

/// The element types that our own operations know: `f32` and `f64`.
pub(super) trait Real: WithDType {}

impl Real for f32 {}
impl Real for f64 {}

/// Whether our own operations take this tensor.
pub(crate) fn is_ours(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// The values of a contiguous tensor.
pub(super) fn contiguous<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let values = T::cpu_storage_as_slice(storage)?;
    let range = layout.contiguous_offsets().and_then(|(start, end)| values.get(start..end));
    range.ok_or_else(|| candle_core::Error::Msg("the tensor is not contiguous".into()))
}

/// The values of a contiguous CPU tensor's storage.
pub(crate) fn values<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => contiguous(storage, layout),
        _ => candle_core::bail!("the tensor is not on the CPU"),
    }
}

/// `$body` with `$t` as the element type of `$storage`.
macro_rules! dispatch {
    ($storage:expr, $t:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $t = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!(
                "no operation for {:?}",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
    };
}
pub(super) use dispatch;

/// `$body` with the values of tensors of one type as slices of `$t`.
macro_rules! with {
    ([$($x:expr),*], $t:ident => |$($values:ident),*| $body:expr) => {{
        let tensors = [$($x.contiguous()?),*];
        let held: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
        match tensors[0].dtype() {
            candle_core::DType::F32 => $crate::ops::real::with!(@ held, f32, $t, [$($values),*], $body),
            candle_core::DType::F64 => $crate::ops::real::with!(@ held, f64, $t, [$($values),*], $body),
            other => candle_core::bail!("no operation for {other:?}"),
        }
    }};
    (@ $held:ident, $type:ty, $t:ident, [$($values:ident),*], $body:expr) => {{
        type $t = $type;
        let mut each = $held.iter();
        $(
            let $values: &[$t] = match each.next() {
                Some((storage, layout)) => $crate::ops::real::values(storage, layout)?,
                None => &[],
            };
        )*
        $body
    }};
}
pub(super) use with;
