//! Parameters as they may be written.

/// Names and values as they are signed.
pub type Signed = &'static [(&'static [u8], &'static [u8])];

/// What is sent, the parameters that it means, and parameters that it does not mean.
pub type Parameter = (&'static str, Signed, Signed);

/// In the query and in the form alike.
pub const PARAMETERS: [Parameter; 35] = [
    ("a=b+c", &[(b"a", b"b c")], &[(b"a", b"b+c")]),
    ("a=b%20c", &[(b"a", b"b c")], &[(b"a", b"b%20c")]),
    ("a=b%2Bc", &[(b"a", b"b+c")], &[(b"a", b"b c")]),
    ("a+b=c", &[(b"a b", b"c")], &[(b"a+b", b"c")]),
    // Escapes in either case, of letters that need none, of an escape, of no UTF-8, of what ends lines and strings.
    ("a=%c3%b8", &[(b"a", b"\xC3\xB8")], &[(b"a", b"%c3%b8")]),
    ("a=%C3%b8", &[(b"a", b"\xC3\xB8")], &[(b"a", b"%C3%b8")]),
    ("a=%7e%2D%5f%2E%41", &[(b"a", b"~-_.A")], &[(b"a", b"%7e%2D%5f%2E%41")]),
    ("b%61d%5Fname=bad%2dvalue", &[(b"bad_name", b"bad-value")], &[(b"b%61d%5Fname", b"bad%2dvalue")]),
    ("a=%2525", &[(b"a", b"%25")], &[(b"a", b"%")]),
    ("a=%f8ae", &[(b"a", b"\xF8ae")], &[(b"a", b"\xEF\xBF\xBDae")]),
    ("a=%F0%9F%98%84", &[(b"a", b"\xF0\x9F\x98\x84")], &[(b"a", b"\xED\xA0\xBD\xED\xB8\x84")]),
    ("a=%0D%0A%00%09", &[(b"a", b"\r\n\0\t")], &[(b"a", b"")]),
    // What begins no escape stands for itself.
    ("a=100%", &[(b"a", b"100%")], &[(b"a", b"100")]),
    ("a=%f", &[(b"a", b"%f")], &[(b"a", b"\x0F")]),
    ("a=%zz%4", &[(b"a", b"%zz%4")], &[(b"a", b"zz4")]),
    // Reserved characters, escaped, bare, and some of each.
    (
        "a=%21%2A%27%28%29%3B%3A%40%26%3D%2B%24%2C%2F%3F%23%5B%5D%22",
        &[(b"a", b"!*'();:@&=+$,/?#[]\"")],
        &[(b"a", b"!*'();:@&=+$,/?#[]")],
    ),
    ("a=!*'();:@$,/?[]", &[(b"a", b"!*'();:@$,/?[]")], &[(b"a", b"!*'()")]),
    ("a=1%2C2,3", &[(b"a", b"1,2,3")], &[(b"a", b"1%2C2,3")]),
    ("a[]=x&b%5B]=y", &[(b"a[]", b"x"), (b"b[]", b"y")], &[(b"a", b"x"), (b"b", b"y")]),
    ("a=x.test/b_1-(1).pdf", &[(b"a", b"x.test/b_1-(1).pdf")], &[(b"a", b"x.test/b_1-%281%29.pdf")]),
    ("a=b=c", &[(b"a", b"b=c")], &[(b"a", b"b")]),
    ("a=1;b=2", &[(b"a", b"1;b=2")], &[(b"a", b"1"), (b"b", b"2")]),
    // Each of several, however often, sorted as it is encoded: by name, and then by value.
    ("a=2&a=1", &[(b"a", b"1"), (b"a", b"2")], &[(b"a", b"1")]),
    ("a=1&a=1", &[(b"a", b"1"), (b"a", b"1")], &[(b"a", b"1")]),
    ("z=1&A=2&a-=3&a=4", &[(b"A", b"2"), (b"a", b"4"), (b"a-", b"3"), (b"z", b"1")], &[(b"z", b"1")]),
    ("a~=1&a%C3%B8=2", &[(b"a~", b"1"), (b"a\xC3\xB8", b"2")], &[(b"a~", b"1")]),
    // Empty ones.
    ("", &[], &[(b"", b"")]),
    ("a=", &[(b"a", b"")], &[]),
    ("a", &[(b"a", b"")], &[]),
    ("=b", &[(b"", b"b")], &[]),
    ("=", &[(b"", b"")], &[]),
    ("&a=1", &[(b"a", b"1")], &[(b"", b""), (b"a", b"1")]),
    ("a=1&&b=2&", &[(b"a", b"1"), (b"b", b"2")], &[(b"", b""), (b"a", b"1"), (b"b", b"2")]),
    // Names are compared as they are written.
    ("OAuth_token=x", &[(b"OAuth_token", b"x")], &[]),
    ("realm=x", &[(b"realm", b"x")], &[]),
];

/// What no request line can hold.
pub const IN_A_FORM: [(&[u8], Signed, Signed); 5] = [
    ("a=\u{F8}".as_bytes(), &[(b"a", b"\xC3\xB8")], &[(b"a", b"\xF8")]),
    (b"a=\xF8", &[(b"a", b"\xF8")], &[(b"a", b"\xEF\xBF\xBD")]),
    (b"a=b c", &[(b"a", b"b c")], &[(b"a", b"b+c")]),
    (b"a=b#c", &[(b"a", b"b#c")], &[(b"a", b"b")]),
    (b"a=b\r\n", &[(b"a", b"b\r\n")], &[(b"a", b"b")]),
];
