//! The documentation of an item, out of the pages that rustdoc makes.

use std::path::Path;

use super::files::Files;

/// Kinds of items that have a page.
const KINDS: [&str; 9] = ["fn", "struct", "enum", "trait", "macro", "type", "constant", "static", "union"];
/// What stands for the end of a line in the text.
const BREAKS: [&str; 9] = ["p", "/p", "br", "li", "/pre", "/h1", "/h2", "/div", "/summary"];

/// The page of an item, or of a module, as text; `None` where there is none.
pub(super) fn page(pages: &Files, krate: &str, item: &str) -> Option<String> {
    let mut parts: Vec<&str> = item.split("::").map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.first().is_some_and(|first| *first == "crate" || first.replace('-', "_") == krate) {
        parts.remove(0);
    }
    let Some((name, modules)) = parts.split_last() else {
        return pages.get(&format!("{krate}/index.html")).map(|page| text(page));
    };
    let named = |path: &str| -> bool {
        let Some((folder, file)) = path.rsplit_once('/') else { return false };
        let inside = folder.strip_prefix(krate).unwrap_or_default().trim_start_matches('/');
        let folders: Vec<&str> = inside.split('/').filter(|part| !part.is_empty()).collect();
        let is_page = KINDS.iter().any(|kind| file == format!("{kind}.{name}.html"));
        let is_module = file == "index.html" && folders.last() == Some(name);
        let within = if is_module { &folders[..folders.len() - 1] } else { &folders[..] };
        (is_page || is_module) && within.ends_with(modules)
    };
    pages.iter().filter(|(path, _)| named(path)).min_by_key(|(path, _)| path.len()).map(|(_, page)| text(page))
}

/// The items that have a page, as paths.
pub(super) fn items(pages: &Files, krate: &str) -> Vec<String> {
    let item = |path: &String| {
        let inside = path.strip_prefix(krate)?.strip_prefix('/')?;
        let (folder, file) = inside.rsplit_once('/').unwrap_or(("", inside));
        let (kind, name) = file.strip_suffix(".html")?.split_once('.')?;
        let folder = if folder.is_empty() { String::new() } else { format!("{}::", folder.replace('/', "::")) };
        KINDS.contains(&kind).then(|| format!("{folder}{name}"))
    };
    pages.keys().filter_map(item).collect()
}

/// Only pages of the crate itself.
pub(super) fn is_page(path: &Path, krate: &str) -> bool {
    path.starts_with(krate) && path.extension().is_some_and(|extension| extension == "html")
}

/// The main part of a page without its marks.
fn text(page: &[u8]) -> String {
    let page = String::from_utf8_lossy(page);
    let main = page.split_once("<main>").map_or(&*page, |(_, rest)| rest);
    let main = main.split_once("</main>").map_or(main, |(main, _)| main);
    let mut out = String::new();
    let mut rest = main;
    while let Some(at) = rest.find('<') {
        out += &rest[..at];
        let tag = &rest[at + 1..];
        let end = tag.find('>').map_or(tag.len(), |end| end + 1);
        let name = tag[..end].split([' ', '>']).next().unwrap_or_default();
        rest = &tag[end..];
        let hidden = match name {
            "button" | "rustdoc-toolbar" | "nav" | "script" => Some(format!("</{name}>")),
            "a" if tag[..end].contains("class=\"src") || tag[..end].contains("class=\"anchor") => Some("</a>".into()),
            "span" if tag[..end].contains("class=\"sub-heading") => Some("</span>".into()),
            _ => None,
        };
        if let Some(close) = hidden {
            rest = rest.split_once(close.as_str()).map_or("", |(_, rest)| rest);
        } else if BREAKS.contains(&name) {
            out.push('\n');
        }
    }
    out += rest;
    let out = out.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
    let out = out
        .replace("&nbsp;", " ")
        .replace("&amp;", "&")
        .replace("Expand description", "")
        .replace("Copy item path", "");
    let mut lines: Vec<&str> = Vec::new();
    for line in out.lines().map(str::trim_end) {
        if !(line.trim().is_empty() && lines.last().is_none_or(|last| last.trim().is_empty())) {
            lines.push(line);
        }
    }
    lines.join("\n").trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "<html><nav>menu</nav><main><div class=\"main-heading\"><h1>Function <span>add</span><button>Copy item path</button></h1>\
        <a class=\"src\" href=\"x\">Source</a></div><pre class=\"rust item-decl\"><code>pub fn add(a: &amp;<a href=\"y\">u8</a>) -&gt; u8</code></pre>\
        <div class=\"docblock\"><p>Adds.</p>\n</div></main><footer>f</footer></html>";

    #[test]
    fn pages_are_found_by_path_and_read_as_text() {
        let names =
            ["a_b/index.html", "a_b/fn.add.html", "a_b/text/struct.Words.html", "a_b/text/index.html", "a_b/all.html"];
        let pages: Files = names.iter().map(|name| ((*name).to_owned(), PAGE.as_bytes().to_vec())).collect();
        for item in ["add", "crate::add", "a-b::add", "Words", "text::Words", "a_b::text", ""] {
            assert!(page(&pages, "a_b", item).is_some(), "{item}");
        }
        for item in ["sub", "text::add", "all"] {
            assert!(page(&pages, "a_b", item).is_none(), "{item}");
        }
        assert_eq!(page(&pages, "a_b", "add").unwrap(), "Function add\n\npub fn add(a: &u8) -> u8\n\nAdds.\n");
        assert_eq!(items(&pages, "a_b"), ["add", "text::Words"]);
        assert!(is_page(Path::new("a_b/fn.add.html"), "a_b") && !is_page(Path::new("static.files/x.html"), "a_b"));
    }
}
