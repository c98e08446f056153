// SPDX-License-Identifier: Apache-2.0
//! Compiles the packet programs into a skeleton and makes Rust types of `include/abi.h`.

mod layout;
mod other_layout;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use bindgen::callbacks::{DeriveInfo, EnumVariantCustomBehavior, EnumVariantValue, ItemInfo, ParseCallbacks, TypeKind};
use libbpf_cargo::SkeletonBuilder;

/// Enums of the header that become Rust enums; the others are flags, limits and layouts, and become constants.
const ENUMS: [&str; 6] = [
    "direction",
    "verdict",
    "reason",
    "conntrack_state",
    "log_mode",
    "enforcement",
];

fn main() -> Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("failed to find the crate's folder")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("failed to find the folder for generated code")?);
    println!("cargo::rerun-if-env-changed=CLANG");
    for folder in ["build", "include", "prog"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let header = header(&root, &out)?;
    for name in ["wardline", "harness", "hold"] {
        build_skeleton(&root, &header, &out, name)?;
    }
    build_layout(&root, &header, &out)?;
    build_bindings(&root, &header, &out)
}

/// The ABI's header: as it is, or with another layout.
fn header(root: &Path, out: &Path) -> Result<PathBuf> {
    let header = root.join("include/abi.h");
    if env::var_os("CARGO_FEATURE_OTHER_LAYOUT").is_none() {
        return Ok(header);
    }
    let text = fs::read_to_string(&header).context("failed to read abi.h")?;
    let folder = out.join("include");
    fs::create_dir_all(&folder).context("failed to make a folder for headers")?;
    let other = folder.join("abi.h");
    fs::write(&other, other_layout::other_layout(&text)?).context("failed to write the other layout")?;
    Ok(other)
}

fn include_folders(root: &Path, header: &Path) -> Vec<String> {
    let folders = [
        header.parent().map(Path::to_path_buf),
        Some(root.join("include/vendor")),
    ];
    folders
        .iter()
        .flatten()
        .map(|folder| format!("-I{}", folder.display()))
        .collect()
}

/// `CLANG` where it is set; Debian installs only the name with the version.
fn find_clang() -> Result<PathBuf> {
    let named = env::var_os("CLANG").map(|clang| vec![PathBuf::from(clang)]);
    let candidates = named.unwrap_or_else(|| vec!["clang-19".into(), "clang".into()]);
    for clang in &candidates {
        let targets = Command::new(clang).arg("--print-targets").output();
        if targets.is_ok_and(|targets| String::from_utf8_lossy(&targets.stdout).contains("bpf")) {
            return Ok(clang.clone());
        }
    }
    bail!("failed to find a clang that compiles for BPF: tried {candidates:?}; install clang-19 or set CLANG")
}

fn clang_args(root: &Path, header: &Path) -> Vec<String> {
    let mut args = vec![
        "-mcpu=v3".to_owned(),
        "-Wall".into(),
        "-Wextra".into(),
        "-Werror".into(),
    ];
    args.extend(include_folders(root, header));
    args
}

/// Where the fields of what outlives a daemon lie.
fn build_layout(root: &Path, header: &Path, out: &Path) -> Result<()> {
    let object = out.join("layout.bpf.o");
    SkeletonBuilder::new()
        .source(root.join("prog/layout.bpf.c"))
        .obj(&object)
        .clang(find_clang()?)
        .clang_args(clang_args(root, header))
        .build()
        .context("failed to build prog/layout.bpf.c")?;
    fs::write(out.join("layout.json"), layout::describe(&object)?).context("failed to write the layout")
}

fn build_skeleton(root: &Path, header: &Path, out: &Path, name: &str) -> Result<()> {
    let mut args = clang_args(root, header);
    if env::var_os("CARGO_FEATURE_INGRESS_IFINDEX_FROM_MARK").is_some() {
        args.push(format!(
            "-include{}",
            root.join("prog/ingress_ifindex_from_mark.h").display()
        ));
    }
    SkeletonBuilder::new()
        .source(root.join(format!("prog/{name}.bpf.c")))
        .clang(find_clang()?)
        .clang_args(args)
        .build_and_generate(out.join(format!("{name}.skel.rs")))
        .with_context(|| format!("failed to build prog/{name}.bpf.c"))
}

fn build_bindings(root: &Path, header: &Path, out: &Path) -> Result<()> {
    let mut builder = bindgen::Builder::default()
        .header(header.to_string_lossy())
        .clang_args(include_folders(root, header))
        .use_core()
        .allowlist_file(header.to_string_lossy())
        .prepend_enum_name(false)
        .layout_tests(false)
        .derive_default(true)
        .derive_eq(true)
        .derive_hash(true)
        .parse_callbacks(Box::new(RustNames));
    for name in ENUMS {
        builder = builder.rustified_enum(name);
    }
    let code = builder
        .generate()
        .with_context(|| format!("failed to read {}", header.display()))?
        .to_string();
    fs::write(out.join("abi.rs"), code).context("failed to write the ABI types")
}

/// Names as Rust spells them, and derives that refuse padding.
#[derive(Debug)]
struct RustNames;

impl ParseCallbacks for RustNames {
    fn item_name(&self, item: ItemInfo<'_>) -> Option<String> {
        (!item.name.starts_with("__")).then(|| camel_case(item.name))
    }

    fn enum_variant_name(&self, of: Option<&str>, variant: &str, _: EnumVariantValue) -> Option<String> {
        let of = of?.trim_start_matches("enum ");
        // conntrack_state's variants are CONNTRACK_*, log_mode's LOG_*: the last word is the enum's kind, not a name.
        let prefix = of
            .strip_suffix("_state")
            .or(of.strip_suffix("_mode"))
            .unwrap_or(of)
            .to_uppercase()
            + "_";
        ENUMS
            .contains(&of)
            .then(|| camel_case(&variant.strip_prefix(&prefix).unwrap_or(variant).to_lowercase()))
    }

    /// Counts size the header's arrays; in Rust they would be a value that no match expects.
    fn enum_variant_behavior(
        &self,
        of: Option<&str>,
        variant: &str,
        _: EnumVariantValue,
    ) -> Option<EnumVariantCustomBehavior> {
        let is_rust_enum = ENUMS.contains(&of?.trim_start_matches("enum "));
        (is_rust_enum && variant.ends_with("_COUNT")).then_some(EnumVariantCustomBehavior::Hide)
    }

    fn add_derives(&self, info: &DeriveInfo<'_>) -> Vec<String> {
        let derives: &[&str] = match info.kind {
            TypeKind::Struct => &[
                "zerocopy::FromBytes",
                "zerocopy::IntoBytes",
                "zerocopy::Immutable",
                "zerocopy::KnownLayout",
            ],
            _ => &["PartialOrd", "Ord"],
        };
        derives.iter().map(|derive| (*derive).to_owned()).collect()
    }
}

fn camel_case(name: &str) -> String {
    name.split('_')
        .filter(|word| !word.is_empty())
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect()
}
