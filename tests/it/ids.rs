//! Ids: every valid one round-trips, nothing else is accepted.

use collections_service::domain::{CollectionId, UserId};
use proptest::prelude::*;

proptest! {
    #[test]
    fn every_positive_number_round_trips(number in 1..=i64::MAX) {
        let id: CollectionId = format!("custom-{number}").parse().unwrap();
        prop_assert_eq!(id.get(), number);
        prop_assert_eq!(id.to_string(), format!("custom-{number}"));
        prop_assert_eq!(number.to_string().parse::<UserId>().unwrap().get(), number);
    }

    #[test]
    fn whatever_parses_is_canonical(text in "(custom-|Custom-|)[+\\- 0]?[0-9]{0,20}[ ٣x]?") {
        if let Ok(id) = text.parse::<CollectionId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }
}

#[test]
fn nothing_else_is_accepted() {
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
