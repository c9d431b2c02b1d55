//! Malformed ids. The fuzz test covers arbitrary texts.

use collections_service::domain::{CollectionId, UserId};

#[test]
fn malformed_ids_are_rejected() {
    let bad = [
        "",
        "custom-",
        "custom-0",
        "custom-01",
        "custom--1",
        "custom-+1",
        "custom- 1",
        "custom-1 ",
        " custom-1",
        "Custom-1",
        "CUSTOM-1",
        "custom_1",
        "list-1",
        "1",
        "custom-1.0",
        "custom-0x1",
        "custom-１２",
        "custom-٣",
        "custom-9223372036854775808",
        "custom-99999999999999999999",
        "custom-custom-1",
        "custom-1\n",
        "custom-1\0",
    ];
    for text in bad {
        assert!(text.parse::<CollectionId>().is_err(), "{text:?} was accepted");
        let user = text.trim_start_matches("custom-");
        assert!(user == "1" || user.parse::<UserId>().is_err(), "{user:?} was accepted as a user");
    }
}
