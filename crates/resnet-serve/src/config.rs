//! Limits and policies of the server.

use std::time::Duration;

/// Limits and policies of the server. Every limit bounds memory or time.
#[derive(Debug, Clone)]
pub struct Config {
    /// Worker threads that decode images and run networks.
    pub threads: usize,
    /// Threads that compute one image.
    pub threads_per_image: ThreadsPerImage,
    /// Largest request body in bytes, after decompression.
    pub max_body: usize,
    /// Images that are admitted at once, over all requests: queued, being decoded or being computed. More are answered
    /// with 429.
    pub max_in_flight: usize,
    /// Longest time from admission to the start of the computation of an image.
    pub queue_timeout: Duration,
    /// Default number of classes in a response.
    pub top_k: usize,
    /// Accepted API keys (`Authorization: Bearer KEY`); empty to accept every request.
    pub api_keys: Vec<String>,
    /// Origins whose pages may call the API (CORS); `*` for any. Empty: none.
    pub cors_origins: Vec<String>,
}

impl Default for Config {
    /// All cores, 32 MiB bodies, 64 images in flight, 30 s in the queue, top 5.
    fn default() -> Config {
        Config {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            threads_per_image: ThreadsPerImage::Auto,
            max_body: 32 << 20,
            max_in_flight: 64,
            queue_timeout: Duration::from_secs(30),
            top_k: 5,
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
        }
    }
}

/// Threads that compute one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ThreadsPerImage {
    /// One while other images are in flight, all otherwise.
    #[default]
    Auto,
    /// All threads, one image after another: lowest latency of each image.
    All,
    /// One: highest throughput.
    One,
}
