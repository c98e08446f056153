// SPDX-License-Identifier: Apache-2.0
//! What an image is made of, as a `CycloneDX` document beside its archive: the crates that its binaries are linked from, as
//! Cargo resolves them for the target, and the C libraries that are linked in with them. The same sources make the same
//! document: it has no time and no random number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::command::{output_of, run};
use crate::layout::Layout;

/// Debian's packages of what is linked in besides crates, with the licenses of the parts that are; libbpf itself comes
/// with the crate libbpf-sys. The first is in every static binary.
const LIBRARIES: [(&str, &str, &str); 3] = [
    ("glibc", "libc6-dev", "LGPL-2.1-or-later"),
    ("elfutils", "libelf-dev", "GPL-2.0-or-later OR LGPL-3.0-or-later"),
    ("zlib", "zlib1g-dev", "Zlib"),
];

/// An image, by what its document says of it.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The image without its tag.
    pub name: &'a str,
    /// Its tag.
    pub version: &'a str,
    /// The binaries in it, each of the package of its name.
    pub binaries: &'a [&'a str],
    /// The target triple that they are built for.
    pub target: &'a str,
}

/// Writes the document to `path`, with the digests of the binaries in `folder`.
pub fn write(layout: &Layout, contents: Contents<'_>, folder: &Path, path: &Path) -> Result<()> {
    let mut document = describe(layout, contents)?;
    for binary in document["components"].as_array_mut().into_iter().flatten() {
        if binary["type"] == "application" {
            let file = folder.join(binary["name"].as_str().unwrap_or_default());
            let bytes = fs::read(&file).with_context(|| format!("failed to read {}", file.display()))?;
            binary["hashes"] = json!([{"alg": "SHA-256", "content": format!("{:x}", Sha256::digest(bytes))}]);
        }
    }
    let text = serde_json::to_string_pretty(&document).context("failed to write the document")?;
    fs::write(path, text + "\n").with_context(|| format!("failed to write {}", path.display()))
}

/// The document, as far as it does not need the binaries.
pub fn describe(layout: &Layout, contents: Contents<'_>) -> Result<Value> {
    let checksums = checksums(layout)?;
    let (mut components, mut needs) = (BTreeMap::new(), BTreeMap::new());
    for binary in contents.binaries {
        let mut crates = crates(layout, binary, contents.target)?;
        crates.remove(0);
        let mut reached: BTreeSet<String> = BTreeSet::new();
        for Linked { name, version, license } in crates {
            let (reference, component) = component(&name, &version, &license, &checksums);
            components.insert(reference.clone(), component);
            reached.insert(reference);
            if let ("libbpf-sys", Some((_, libbpf))) = (name.as_str(), version.split_once("+v")) {
                for (reference, component) in libbpf_and_libraries(libbpf, &LIBRARIES[1..])? {
                    reached.insert(reference.clone());
                    components.insert(reference, component);
                }
            }
        }
        for (reference, component) in debian(&LIBRARIES[..1])? {
            reached.insert(reference.clone());
            components.insert(reference, component);
        }
        let own = format!("binary:{binary}");
        let component =
            json!({"type": "application", "bom-ref": own, "name": binary, "version": env!("CARGO_PKG_VERSION")});
        components.insert(own.clone(), component);
        needs.insert(own, reached);
    }
    let image = "image";
    needs.insert(image.into(), needs.keys().cloned().collect());
    let dependencies: Vec<Value> = needs
        .iter()
        .map(|(whose, on)| json!({"ref": whose, "dependsOn": on}))
        .collect();
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": image, "name": contents.name, "version": contents.version},
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies,
    }))
}

/// A crate that a binary is linked from.
#[derive(Debug)]
struct Linked {
    name: String,
    version: String,
    license: String,
}

/// The package itself, and what it needs when it runs: with the features that it asks for, nothing of tests and builds.
fn crates(layout: &Layout, package: &str, target: &str) -> Result<Vec<Linked>> {
    let mut tree = Command::new("cargo");
    tree.current_dir(layout.workspace())
        .args(["tree", "--locked", "--edges=normal,no-proc-macro"]);
    tree.args(["--package", package, "--target", target]);
    tree.args(["--prefix=none", "--no-dedupe", "--format={p}|{l}"]);
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in output_of(&mut tree)?
        .lines()
        .filter(|line| seen.insert((*line).to_owned()))
    {
        let (package, license) = line.split_once('|').context("failed to read cargo's tree")?;
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        found.push(Linked {
            name: name.to_owned(),
            version: version.trim_start_matches('v').to_owned(),
            // The way in which old crates write it.
            license: license.replace('/', " OR "),
        });
    }
    ensure!(found.len() > 1, "cargo's tree of {package} is empty");
    Ok(found)
}

/// A crate's reference and component.
fn component(
    name: &str,
    version: &str,
    license: &str,
    checksums: &BTreeMap<(String, String), String>,
) -> (String, Value) {
    let reference = format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"));
    let mut component =
        json!({"type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference});
    if !license.is_empty() {
        component["licenses"] = json!([{"expression": license}]);
    }
    // Our own crates have none.
    if let Some(checksum) = checksums.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    (reference, component)
}

/// What Cargo.lock holds registry crates to, by name and version.
fn checksums(layout: &Layout) -> Result<BTreeMap<(String, String), String>> {
    let path = layout.workspace().join("Cargo.lock");
    let lock = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            package
                .lines()
                .find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'))
        };
        if let (Some(name), Some(version), Some(checksum)) = (field("name"), field("version"), field("checksum")) {
            found.insert((name.to_owned(), version.to_owned()), checksum.to_owned());
        }
    }
    Ok(found)
}

fn libbpf_and_libraries(libbpf: &str, libraries: &[(&str, &str, &str)]) -> Result<Vec<(String, Value)>> {
    let reference = format!("pkg:generic/libbpf@{libbpf}");
    let component = json!({
        "type": "library", "bom-ref": reference, "name": "libbpf", "version": libbpf, "purl": reference,
        "licenses": [{"expression": "LGPL-2.1-only OR BSD-2-Clause"}],
    });
    let mut all = debian(libraries)?;
    all.push((reference, component));
    Ok(all)
}

/// Static libraries of this machine.
fn debian(libraries: &[(&str, &str, &str)]) -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    for (name, package, license) in libraries {
        let version = run(
            "dpkg-query",
            ["--show", "--showformat=${Version} ${Architecture}", package],
        )?;
        let (version, architecture) = version.split_once(' ').context("failed to read dpkg-query's answer")?;
        let quoted = version.replace('+', "%2B").replace(':', "%3A");
        let reference = format!("pkg:deb/debian/{package}@{quoted}?arch={architecture}");
        let component = json!({
            "type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference,
            "licenses": [{"expression": license}],
        });
        all.push((reference, component));
    }
    Ok(all)
}

/// Where the document of an image lies.
pub fn path(archive: &Path) -> PathBuf {
    archive.with_extension("cdx.json")
}
