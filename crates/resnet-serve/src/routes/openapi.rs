//! The OpenAPI document, collected from the handlers, and a page that lists it.

use std::fmt::Write;

use utoipa::OpenApi;
use utoipa::openapi::path::Operation;

use super::{hf, ops};

#[derive(OpenApi)]
#[openapi(
    info(title = "resnet-serve", description = "Image classification with ResNets"),
    paths(
        ops::live,
        ops::ready,
        ops::metrics,
        ops::info,
        hf::classify_default,
        hf::classify,
        hf::invocations,
        hf::ping,
        hf::torchserve,
        hf::vertex,
    )
)]
struct Document;

/// OpenAPI document of all routes.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The document as an HTML page without scripts or third-party requests.
pub(super) fn page() -> String {
    let document = document();
    let mut rows = String::new();
    for (path, item) in &document.paths.paths {
        let operations: [(&str, &Option<Operation>); 3] =
            [("GET", &item.get), ("POST", &item.post), ("PUT", &item.put)];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let text = [&operation.summary, &operation.description];
            let text = text.iter().filter_map(|t| t.as_deref()).next().unwrap_or_default();
            // Writing to a string does not fail. Paths and summaries are ours, so they need no escaping.
            let _ = write!(rows, "<tr><td>{method}<td><code>{path}</code><td>{text}");
        }
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>resnet-serve API</title><style>:root{{color-scheme:light dark;font:16px/1.5 system-ui}}\
         body{{max-width:60rem;margin:2rem auto;padding:0 1rem}}td{{padding:.25rem 1rem .25rem 0;vertical-align:top}}\
         </style><h1>resnet-serve API</h1><p>Machine-readable: <a href=/openapi.json>openapi.json</a></p>\
         <table>{rows}</table></html>"
    )
}
