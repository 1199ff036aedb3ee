use super::{check, read};
use crate::build::safetensors::{st, tensor, w};

const DATA: [u8; 16] = [0; 16];

fn one(name: &str, tensor: &str, data: &[u8]) -> Vec<u8> {
    st(&format!(r#"{{"{name}":{tensor}}}"#), data)
}

#[test]
fn f01_to_f06_headers_offsets_and_sizes() {
    let bad = &["safetensors"];
    let ordinary = one("w", &w(), &DATA);
    check("ordinary", std::slice::from_ref(&ordinary), &["ok"]);
    for len in [1000u64, 100_000_001, u64::MAX, 0] {
        check(
            "F01",
            &[crate::build::overwrite(&ordinary, 0, &len.to_le_bytes())],
            &["safetensors", "format"],
        );
    }
    let many: Vec<String> = (0..10_000).map(|i| format!(r#""w{i}":{}"#, w())).collect();
    check("F02", &[st(&format!("{{{}}}", many.join(",")), &DATA)], bad);
    let hole = format!(r#"{{"a":{},"b":{}}}"#, w(), tensor("F32", "[2,2]", "20", "36"));
    check("F03", &[st(&hole, &[0; 36])], bad);
    check("F03", &[one("a", &tensor("F32", "[2,2]", "4", "20"), &[0; 20])], bad);
    check("F03", &[one("a", &w(), &[&DATA[..], b"PK\x03\x04"].concat())], bad);
    for (start, end) in [("16", "0"), ("-16", "0"), ("0", "16.0"), ("0", "18446744073709551616"), ("0", "17")]
    {
        check("F04", &[one("w", &tensor("F32", "[2,2]", start, end), &DATA)], bad);
    }
    let ones = format!("[{}]", vec!["1"; 100_000].join(","));
    for shape in ["[2,3]", "[2,18446744073709551614]", "[2,9223372036854775807]", "[-2,-2]", &ones] {
        check("F05", &[one("w", &tensor("F32", shape, "0", "16"), &DATA)], bad);
    }
    check("F06", &["F99", "f32", ""].map(|d| one("w", &tensor(d, "[2,2]", "0", "16"), &DATA)), bad);
    check("F06", &[one("w", &tensor("F4", "[3]", "0", "2"), &[0; 2])], bad);
}

#[test]
fn f07_to_f15_names_json_and_values() {
    let bad = &["safetensors"];
    check("F07", &[st(&format!(r#"{{"w":{0},"w":{0}}}"#, w()), &DATA)], bad);
    let headers = ["{", "[]", "\u{feff}{}", "{}x", "null"].map(|h| st(h, b""));
    check("F08", &headers, &["safetensors", "format"]);
    check("F08", &[st("  {}", b"")], &["no-tensors"]);
    let deep = [
        format!(r#"{{"w":{}"#, "[".repeat(100_000)),
        format!(r#"{{"__metadata__":{}"#, r#"{"a":"#.repeat(100_000)),
    ];
    check("F09", &deep.map(|h| st(&h, b"")), bad);
    check("F10", &[st(r#"{"__metadata__":{"a":1}}"#, b"")], bad);
    check("F10", &[st(r#"{"__metadata__":{"a":"\u001b[2J<script>"}}"#, b"")], &["no-tensors"]);
    let names = ["__metadata__".to_owned(), String::new(), "a\\u0000".into(), "n".repeat(1 << 20)];
    check("F11", &names.map(|n| one(&n, &w(), &DATA)), bad);
    check("F11", &[one("../x", &w(), &DATA)], &["ok"]);
    let empty: Vec<String> =
        (0..100_000).map(|i| format!(r#""w{i}":{}"#, tensor("F32", "[0]", "0", "0"))).collect();
    check("F12", &[st(&format!("{{{}}}", empty.join(",")), b"")], &["ok"]);
    check("F12", &[one("s", &tensor("F32", "[]", "0", "4"), &[0; 4])], &["ok"]);
    check(
        "F13",
        &[br#"{"metadata":{},"weight_map":{"w":"../malicious.safetensors"}}"#.to_vec()],
        &["format"],
    );
    let odd = crate::build::f32s(&[f32::NAN, f32::INFINITY, 1e-40, 0.0]);
    assert_eq!(read(&one("w", &w(), &odd)).unwrap().1[0].2, odd, "F15");
}

/// A file starts with the length of its header, whose bytes may look like a pickle protocol or an ONNX field.
#[test]
fn a_header_of_any_length_is_known() {
    let plain = format!(r#"{{"w":{}}}"#, w());
    for len in (plain.len()..1600).chain(66_400..66_500).chain([0x0a08, 0x1208]) {
        check(
            &format!("header of {len}"),
            &[st(&(plain.clone() + &" ".repeat(len - plain.len())), &DATA)],
            &["ok"],
        );
    }
}
