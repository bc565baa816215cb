#!/usr/bin/env rustx {
//! Everything here is taken by rustc, and every brace that is none stands alone: " ' {
#![allow(dead_code, unused, non_camel_case_types)]

/* a block /* in a block } */ still " open ' { */
/**/
/***/
/** documentation } */
#[doc = "an attribute }"]
fn lifetimes<'a, 'b: 'a, '_long, 'r>(x: &'a str, y: &'b str) -> &'a str {
    'outer: loop {
        'inner: loop {
            break 'outer;
        }
    }
    fn anonymous(x: &str) -> Option<&'_ str> {
        None
    }
    fn raw<'r#type>(x: &'r#type str) {}
    x
}

fn chars() -> [char; 14] {
    ['{', '}', '\'', '"', '\\', '\u{7D}', '\u{7d_}', '/', '*', 'a', '_', 'é', '→', '\x7B']
}

fn bytes() -> (u8, u8, u8, u8, u8, u8) {
    (b'{', b'}', b'\'', b'"', b'\\', b'\x7D')
}

fn strings() -> [&'static str; 13] {
    [
        "{", "\"}", "\\", "\u{7D}", "// {", "/* {", "'{",
        "two
        lines {",
        "a \
         continued }",
        r"\",
        r#"a " quote }"#,
        r##"a "# quote {"##,
        r"",
    ]
}

fn byte_strings() -> (&'static [u8; 2], &'static [u8; 2], &'static [u8; 4], &'static std::ffi::CStr) {
    (b"\"{", br"\{", br#"""{}"#, c"\"{")
}

fn c_strings() -> (&'static std::ffi::CStr, &'static std::ffi::CStr) {
    (cr"\}", cr##""#}"##)
}

fn names() {
    let r#fn = 1;
    let r = r#fn;
    let (b, c, br, cr, rb) = (r, r, r, r, r);
    let é = b;
    let _ = c;
    let __ = br;
    struct größe<'r>(&'r str);
}

fn numbers() {
    let t = ((1, 2), 3);
    let a = t.0.1;
    let b = 1..2;
    let c = 1..=2;
    let d = 1.;
    let e = 1.0e5;
    let f = 1e-5_f64;
    let g = 0xE+1;
    let h = 0b1010_u8 + 0o17;
    let i = 1.max(2);
    let j = 2.0_f64.max(1.5e+3_f64);
    let k = [1, 2][0..1].len();
    let l = 1usize as f32 / 2f32;
    let m = 1_000.0_f64;
}

macro_rules! tokens {
    ($($token:tt)*) => {};
}
tokens! { 'a 'b: 'static r#struct "suffix"r "{" 1.0foo 'x'y b"{"_z 0xfoo 1r"{" '_ $ # ' ' a 'b' r 'r '}' }
tokens!(->::<>..=...=>==!=<=>=&&||+=-=*=/=%=^=|=&=<<>><<=>>=);

fn comments() { // }
    let a = 4 / 2 /* } */ / 1; // {
    let b = &a; let c = *b //
        / 1;
    //
} /// documents what follows }
fn last() {}
