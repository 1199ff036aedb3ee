//! candle-transformers, tract or rten as a process that `peers.py` drives: `peer ENGINE FOLDER DEPTH BATCH THREADS`.

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, Result, bail};

type Run = Box<dyn Fn() -> Result<Vec<f32>>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [engine, folder, depth, batch, threads] = args.as_slice() else { bail!("usage: see the source") };
    let (batch, threads): (usize, usize) = (batch.parse()?, threads.parse()?);
    let stem = format!("{folder}/r{depth}-b{batch}");
    let x = npy(&format!("{stem}.input.npy"))?;
    let expected = npy(&format!("{stem}.logits.npy"))?;
    let run = match engine.as_str() {
        "candle" => candle(&format!("{folder}/r{depth}.plain.safetensors"), depth, batch, x)?,
        "tract" => tract(&format!("{stem}.onnx"), batch, x)?,
        "rten" => rten(&format!("{stem}.onnx"), batch, threads, x)?,
        other => bail!("unknown engine {other}"),
    };
    let found = run()?;
    let max = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / max;
    println!("{{\"error\": {error:e}}}");
    for line in std::io::stdin().lock().lines() {
        let mut times = Vec::new();
        for _ in 0..line?.trim().parse::<usize>()? {
            let start = Instant::now();
            run()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        println!("{times:?}");
    }
    Ok(())
}

/// The f32 values of a `.npy` file that numpy has just written.
fn npy(path: &str) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).context(path.to_owned())?;
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    Ok(bytes[10 + header..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn candle(weights: &str, depth: &str, batch: usize, x: Vec<f32>) -> Result<Run> {
    use candle_core::{DType, Device, Module, Tensor};
    use candle_transformers::models::resnet;

    let vb = candle_nn::VarBuilder::from_buffered_safetensors(std::fs::read(weights)?, DType::F32, &Device::Cpu)?;
    let model = match depth {
        "18" => resnet::resnet18(1000, vb)?,
        "34" => resnet::resnet34(1000, vb)?,
        "50" => resnet::resnet50(1000, vb)?,
        "101" => resnet::resnet101(1000, vb)?,
        _ => resnet::resnet152(1000, vb)?,
    };
    let x = Tensor::from_vec(x, (batch, 3, 224, 224), &Device::Cpu)?;
    Ok(Box::new(move || Ok(model.forward(&x)?.flatten_all()?.to_vec1()?)))
}

fn tract(path: &str, batch: usize, x: Vec<f32>) -> Result<Run> {
    use tract_onnx::prelude::*;

    let model = tract_onnx::onnx().model_for_path(path)?.into_optimized()?.into_runnable()?;
    let x = Tensor::from_shape(&[batch, 3, 224, 224], &x)?;
    Ok(Box::new(move || {
        let outputs = model.run(tvec!(x.clone().into()))?;
        Ok(outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }))
}

fn rten(onnx: &str, batch: usize, threads: usize, x: Vec<f32>) -> Result<Run> {
    use rten_tensor::prelude::*;
    use std::sync::Arc;

    let model = rten::Model::load_file(onnx)?;
    let pool = Arc::new(rten::ThreadPool::with_num_threads(threads));
    let x = rten_tensor::NdTensor::from_data([batch, 3, 224, 224], x);
    Ok(Box::new(move || {
        let options = rten::RunOptions::default().with_thread_pool(Some(pool.clone()));
        let logits: rten_tensor::NdTensor<f32, 2> = model.run_one(x.view().into(), Some(options))?.try_into()?;
        Ok(logits.to_vec())
    }))
}
