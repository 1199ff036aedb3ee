use super::{check, check_each, read};
use crate::build::legacy::{Legacy, info, keys};
use crate::build::pickle::{evil, g, i, program, s};
use crate::build::tar::{Member, Tar, archive, pax};
use crate::build::zip::Pth;
use crate::build::{f32s, patch};

fn legacy() -> Legacy {
    Legacy::default()
}

#[test]
fn l01_to_l05_the_parts_of_the_stream() {
    check("ordinary", &[legacy().bytes()], &["ok"]);
    let computed = program(&[g("__builtin__", "eval"), s("0x1950A86A20F9469CFC6C"), b"\x85R".to_vec()]);
    check("L01", &[Legacy { magic: computed, ..legacy() }.bytes()], &["unsafe-global"]);
    let computed = program(&[g("numpy", "int"), s("0x1950A86A20F9469CFC6C"), b"\x85R".to_vec()]);
    check("L01", &[Legacy { magic: computed, ..legacy() }.bytes()], &["trailing-data"]);
    let protocols =
        [i(1000), i(1002), s("1001")].map(|p| Legacy { protocol: program(&[p]), ..legacy() }.bytes());
    check("L02", &protocols, &["version"]);
    let evil = program(&[evil()]);
    let hidden =
        [Legacy { info: evil.clone(), ..legacy() }.bytes(), Legacy { keys: evil, ..legacy() }.bytes()];
    check("L03", &hidden, &["unsafe-global"]);
    let many: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let lists = [keys(&[]), keys(&["9"]), keys(&["0", "0"]), program(&[b"N".to_vec()]), keys(&many)];
    check("L04", &lists.map(|keys| Legacy { keys, ..legacy() }.bytes()), &["storage-keys"]);
    let counts = [5, 3, -1, -7_659_745_797_817_883_467, 1 << 62];
    check(
        "L05",
        &counts.map(|n| Legacy { storages: vec![(n, vec![0; 16])], ..legacy() }.bytes()),
        &["storage-size"],
    );
}

#[test]
fn l06_to_l10_views_ends_and_machines() {
    let views = [(3, 4), (-1, 2), (1 << 62, 1), (0, -1)];
    check("L06", &views.map(|(offset, len)| Legacy::with_view(offset, len)), &["bounds"]);
    let evil = program(&[evil()]);
    let mut cut = legacy().bytes();
    cut.truncate(cut.len() - 5);
    check_each("L07", &[(cut, "eof"), (Legacy { tail: evil, ..legacy() }.bytes(), "trailing-data")]);
    check("L08", &[Legacy { info: info(false), ..legacy() }.bytes()], &["byteorder"]);
    check("L09", &[Legacy::with_module()], &["storage-keys"]);
    check("L10", &[Legacy { tail: Pth::default().bytes(), ..legacy() }.bytes()], &["trailing-data"]);
}

#[test]
fn t01_to_t03_members() {
    for kind in [b'1', b'2'] {
        let mut members = Tar::default().members();
        members.iter_mut().filter(|m| m.name == "storages").for_each(|m| (m.kind, m.data) = (kind, vec![]));
        check("T01", &[archive(&members)], &["tar-link"]);
    }
    let with_pax = |value: &str| {
        let members = Tar::default().members();
        let headed = members.into_iter().flat_map(|m| [pax("size", value), pax("mtime", "1.5"), m]);
        archive(&headed.collect::<Vec<_>>())
    };
    check("T02", &[with_pax("99")], &["tar-size"]);
    let times = Tar::default().members().into_iter().flat_map(|m| [pax("mtime", "1488.25"), m]);
    check("T02", &[archive(&times.collect::<Vec<_>>())], &["ok"]);
    check(
        "T03",
        &["pickle", "tensors", "storages", "sys_info"].map(|n| archive(&Tar::without(n))),
        &["tar-layout"],
    );
    let twice = [Tar::default().members(), vec![Member::new("pickle", program(&[evil()]))]].concat();
    check("T03", &[archive(&twice)], &["tar-layout"]);
    let mut renamed = Tar::without("pickle");
    renamed.extend([pax("path", "pickle"), Member::new("harmless", program(&[evil()]))]);
    check("T03", &[archive(&renamed)], &["tar-layout"]);
}

#[test]
fn t04_to_t09_counts_bounds_and_headers() {
    let tar = Tar::default;
    let counts = [1i64 << 31, -1, 1 << 62];
    check("T04", &counts.map(|storages| Tar { storages, ..tar() }.bytes()), &["count"]);
    check("T04", &counts.map(|tensors| Tar { tensors, ..tar() }.bytes()), &["count"]);
    check("T05", &[-1, i32::MAX].map(|ndim| Tar { ndim, ..tar() }.bytes()), &["bounds"]);
    let places = [(-4, 0), (1 << 61, 0), (4, 1), (4, -1)];
    check("T05", &places.map(|(n, offset)| Tar { size: vec![n], offset, ..tar() }.bytes()), &["bounds"]);
    let views = [[5, 77, 0, 1], [5, 0, 1 << 62, 1 << 62], [0, 0, 0, 4], [5, 0, 3, 2]];
    check("T06", &views.map(|v| Tar { views: vec![v], ..tar() }.bytes()), &["bounds"]);
    let data = f32s(&[1., 2., 3., 4.]);
    let view = Tar { views: vec![[5, 0, 1, 2]], storage: 5, size: vec![2], data, ..tar() }.bytes();
    assert_eq!(read(&view).unwrap().1[0].2, f32s(&[2., 3.]), "a view is read");
    check("T07", &[Tar { object: program(&[evil()]), ..tar() }.bytes()], &["unsafe-global"]);
    check("T08", &[patch(&tar().bytes(), b"ustar", b"ustaX")], &["format"]);
    check("T08", &[patch(&tar().bytes(), b"pickle\0", b"pickl3\0")], &["tar-header"]);
    let long = |kind| Member { kind, ..Member::new("././@LongLink", b"a".repeat(1 << 16)) };
    let other = Member::new("/etc/x", b"x".to_vec());
    let skipped = [vec![long(b'L'), other.clone()], tar().members()].concat();
    check("T08", &[archive(&skipped)], &["ok"]);
    check("T08", &[archive(&[vec![other], tar().members()].concat())], &["ok"]);
    let sparse = Member { kind: b'S', ..Member::new("x", vec![]) };
    check("T08", &[archive(&[vec![sparse], tar().members()].concat())], &["tar-header"]);
    check("T09", &[b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec()], &["format"]);
    let mut cut = tar().bytes();
    cut.truncate(cut.len() - 1024 - 512);
    check("cut", &[cut], &["eof"]);
}
