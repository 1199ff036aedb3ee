//! Text opcodes of protocols 0 and 1, and integers.

use crate::error::{Code, Fault};

use super::value::Value;

fn bad_integer(line: &[u8]) -> Fault {
    let shown = String::from_utf8_lossy(line.get(..20).unwrap_or(line)).into_owned();
    Fault::new(Code::Integer, format!("invalid number `{}`", resnet_model::escape(&shown)))
}

/// INT and LONG: decimal digits; `00` and `01` of INT are the booleans.
pub(super) fn integer(line: &[u8], opcode: u8) -> Result<Value, Fault> {
    match (opcode, line) {
        (b'I', b"00") => return Ok(Value::Bool(false)),
        (b'I', b"01") => return Ok(Value::Bool(true)),
        _ => {}
    }
    let digits = if opcode == b'L' { line.strip_suffix(b"L").unwrap_or(line) } else { line };
    let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
    if unsigned.is_empty() || !unsigned.iter().all(u8::is_ascii_digit) {
        return Err(bad_integer(line));
    }
    let text = std::str::from_utf8(digits).map_err(|_| bad_integer(line))?;
    Ok(text.parse().map_or(Value::Big, Value::Int))
}

/// FLOAT: Python's `repr` of a float.
pub(super) fn float(line: &[u8]) -> Result<Value, Fault> {
    let text = std::str::from_utf8(line).ok().and_then(|t| t.parse().ok());
    text.map(Value::Float).ok_or_else(|| bad_integer(line))
}

/// PUT and GET: a memo number.
pub(super) fn memo_index(line: &[u8]) -> Result<u32, Fault> {
    let digits = line.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(line).ok()).flatten();
    digits.and_then(|t| t.parse().ok()).ok_or_else(|| bad_integer(line))
}

/// A little-endian two's complement number.
pub(super) fn long(bytes: &[u8]) -> Value {
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let mut wide = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    for (to, from) in wide.iter_mut().zip(low) {
        *to = *from;
    }
    let value = i64::from_le_bytes(wide);
    match high.iter().all(|&b| b == fill) && (value < 0) == negative {
        true => Value::Int(value),
        false => Value::Big,
    }
}

/// STRING: Python 2's `repr` of a string.
pub(super) fn quoted(line: &[u8]) -> Result<Vec<u8>, Fault> {
    let bad = || Fault::new(Code::Text, "malformed quoted string");
    let inner = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err(bad()),
    };
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match rest.next().ok_or_else(bad)? {
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'r' => out.push(b'\r'),
            b'x' => {
                let digits = [rest.next().ok_or_else(bad)?, rest.next().ok_or_else(bad)?];
                out.push(u8::try_from(hex(&digits).ok_or_else(bad)?).map_err(|_| bad())?);
            }
            quote @ (b'\\' | b'\'' | b'"') => out.push(quote),
            _ => return Err(bad()),
        }
    }
    Ok(out)
}

/// UNICODE: Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
pub(super) fn raw_unicode(line: &[u8]) -> Result<String, Fault> {
    let bad = || Fault::new(Code::Text, "malformed escape in a string");
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = match (byte, tail.first()) {
            (b'\\', Some(b'u')) => 4usize,
            (b'\\', Some(b'U')) => 8,
            _ => {
                out.push(char::from(byte));
                rest = tail;
                continue;
            }
        };
        let (code, after) = tail.get(1..).and_then(|t| t.split_at_checked(digits)).ok_or_else(bad)?;
        out.push(hex(code).and_then(char::from_u32).ok_or_else(bad)?);
        rest = after;
    }
    Ok(out)
}

fn hex(digits: &[u8]) -> Option<u32> {
    let all = digits.iter().all(u8::is_ascii_hexdigit);
    all.then(|| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longs_are_twos_complement() {
        for (bytes, expected) in [
            (&[][..], Value::Int(0)),
            (&[0xff], Value::Int(-1)),
            (&[0xff, 0], Value::Int(255)),
            (&[0x7f; 8], Value::Int(0x7f7f_7f7f_7f7f_7f7f)),
            (&[0x7f; 9], Value::Big),
            (&[0xff; 20], Value::Int(-1)),
            (&[0, 0, 0, 0, 0, 0, 0, 0x80, 0], Value::Big),
            (&[0, 0, 0, 0, 0, 0, 0, 0x80], Value::Int(i64::MIN)),
        ] {
            assert_eq!(long(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn text_numbers() {
        let int = |line: &str| integer(line.as_bytes(), b'I').map_err(|e| e.code);
        assert_eq!(int("01"), Ok(Value::Bool(true)));
        assert_eq!(int("-7"), Ok(Value::Int(-7)));
        assert_eq!(int("9".repeat(40).as_str()), Ok(Value::Big));
        assert_eq!(int(""), Err(Code::Integer));
        assert_eq!(int("1x"), Err(Code::Integer));
        assert_eq!(integer(b"12L", b'L').unwrap(), Value::Int(12));
        assert!(memo_index(b"-1").is_err() && memo_index(b"").is_err() && memo_index(b"4294967296").is_err());
        assert_eq!(float(b"1e999").unwrap(), Value::Float(f64::INFINITY));
    }

    #[test]
    fn strings_are_unescaped() {
        assert_eq!(quoted(br"'a\x00\'b'").unwrap(), b"a\0'b");
        assert!(quoted(b"'").is_err() && quoted(b"'a").is_err() && quoted(br"'\x0'").is_err());
        assert_eq!(raw_unicode(b"a\\u00e9\xe9\\n").unwrap(), "aéé\\n");
        assert!(raw_unicode(b"\\ud800").is_err() && raw_unicode(b"\\u12").is_err());
    }
}
