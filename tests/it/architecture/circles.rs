//! Import circles between files.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path: `["net", "listener"]`.
type Module = Vec<String>;

/// The `use` declarations of a file: whether each is a re-export, and its path.
fn uses(code: &str) -> Vec<(bool, Vec<String>)> {
    let mut found = Vec::new();
    // Tests import what they test.
    let code = code.split("#[cfg(test)]").next().unwrap();
    for declaration in code.split(';') {
        let Some((before, path)) = declaration.split_once("use ") else { continue };
        let before = before.rsplit('\n').next().unwrap().trim();
        if !["", "pub", "pub(super)", "pub(crate)"].contains(&before) {
            continue;
        }
        let text: String = path.split_whitespace().collect::<Vec<_>>().join(" ");
        expand(&text, &mut Vec::new(), &mut |path| found.push((!before.is_empty(), path.to_vec())));
    }
    found
}

/// `a::{b, c::d}` to `a::b` and `a::c::d`.
fn expand(text: &str, prefix: &mut Vec<String>, found: &mut dyn FnMut(&[String])) {
    let text = text.trim();
    if let Some(group) = text.strip_prefix('{') {
        let group = group.strip_suffix('}').unwrap();
        let (mut depth, mut start) = (0, 0);
        for (at, letter) in group.char_indices().chain([(group.len(), ',')]) {
            depth += i32::from(letter == '{') - i32::from(letter == '}');
            if letter == ',' && depth == 0 {
                let item = group.get(start..at).unwrap();
                if !item.trim().is_empty() {
                    expand(item, prefix, found);
                }
                start = (at + 1).min(group.len());
            }
        }
    } else if let Some((first, rest)) = text.split_once("::") {
        prefix.push(first.to_owned());
        expand(rest, prefix, found);
        prefix.pop();
    } else {
        let name = text.split(" as ").next().unwrap().to_owned();
        found(&[prefix.as_slice(), &[name]].concat());
    }
}

/// The absolute path of what a module imports, where it is in this crate.
fn absolute(module: &Module, path: &[String], modules: &BTreeMap<Module, String>) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.clone(),
        "super" => module[..module.len() - 1].to_vec(),
        child => {
            let child = [module.as_slice(), &[child.to_owned()]].concat();
            return modules.contains_key(&child).then(|| [child.as_slice(), rest].concat());
        }
    };
    for part in rest {
        if part == "super" {
            base.pop();
        } else if part != "self" {
            base.push(part.clone());
        }
    }
    Some(base)
}

/// The module that defines what a path names, through re-exports.
fn definer(path: &[String], modules: &BTreeMap<Module, String>) -> Option<Module> {
    let length = (1..=path.len()).rev().find(|length| modules.contains_key(&path[..*length]))?;
    let (module, item) = (path[..length].to_vec(), path.get(length));
    for (is_export, exported) in uses(&modules[&module]) {
        if is_export && exported.last() == item {
            let exported = absolute(&module, &exported, modules)?;
            return if exported == path { Some(module) } else { definer(&exported, modules) };
        }
    }
    Some(module)
}

/// The files (name and code) that import themselves over others. A module and those below it are one thing in several files,
/// which may refer to one another.
pub fn find<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeSet<String> {
    let modules: BTreeMap<Module, String> = files
        .filter(|(name, _)| !["lib.rs", "main.rs"].contains(name))
        .map(|(name, code)| {
            let module = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            (module, code.to_owned())
        })
        .collect();
    let imports: BTreeMap<&Module, BTreeSet<Module>> = modules
        .iter()
        .map(|(module, code)| {
            let paths = uses(code).into_iter().filter(|(is_export, _)| !is_export);
            let imported =
                paths.filter_map(|(_, path)| definer(&absolute(module, &path, &modules)?, &modules));
            let is_own = |other: &Module| other.starts_with(module) || module.starts_with(other);
            (module, imported.filter(|imported| !is_own(imported)).collect())
        })
        .collect();
    let is_reachable = |from: &Module, to: &Module| {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![from]);
        while let Some(module) = waiting.pop() {
            for next in &imports[module] {
                if next == to {
                    return true;
                }
                if seen.insert(next) {
                    waiting.push(next);
                }
            }
        }
        false
    };
    modules.keys().filter(|module| is_reachable(module, module)).map(|module| module.join("/")).collect()
}

#[test]
fn circles_are_found() {
    let files = [
        ("a.rs", "mod b;\nmod c;\npub use b::B;\nuse self::c::{\n    C,\n    other::{D, E},\n};"),
        ("a/b.rs", "use super::c::C;"),
        ("a/c.rs", "use crate::a::B;"),
        ("d.rs", "use crate::a::B;"),
    ];
    assert_eq!(find(files.into_iter()), BTreeSet::from(["a/b".to_owned(), "a/c".to_owned()]));
}

#[test]
fn no_file_imports_itself_over_others() {
    let sources = super::all_sources();
    let circles = find(sources.iter().map(|(_, name, code)| (name.as_str(), code.as_str())));
    assert!(circles.is_empty(), "{circles:?}");
}
