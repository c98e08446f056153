// SPDX-License-Identifier: Apache-2.0
//! What `layout.bpf.c` tells in its BTF, as the JSON that a daemon leaves to others: each struct with its size, and each
//! of its integers with offset and size, both in bytes.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::btf::types::{Array, Composite, DataSec, Int};
use libbpf_rs::btf::{Btf, BtfType, HasSize as _, TypeId};
use serde_json::{Map, Value, json};

pub(crate) fn describe(object: &Path) -> Result<String> {
    let btf = Btf::from_path(object).context("failed to read the BTF of layout.bpf.c")?;
    let mut structs = Map::new();
    for section in btf.type_by_kind::<DataSec<'_>>() {
        for variable in section.iter() {
            let variable: BtfType<'_> = btf.type_by_id(variable.ty).context("a variable has no type")?;
            let variable = variable.next_type().context("a variable has no type")?;
            let described: Composite<'_> = variable.try_into().ok().context("a variable is no struct")?;
            let name = described
                .name()
                .context("a struct has no name")?
                .to_string_lossy()
                .into_owned();
            let mut fields = Map::new();
            add(&btf, described, 0, "", &mut fields)?;
            structs.insert(name, json!({"size": described.size(), "fields": fields}));
        }
    }
    Ok(Value::from(structs).to_string())
}

/// The integers of a struct that begins at `offset`, `path` before their names.
fn add(btf: &Btf<'_>, of: Composite<'_>, offset: usize, path: &str, fields: &mut Map<String, Value>) -> Result<()> {
    for member in of.iter() {
        let libbpf_rs::btf::types::MemberAttr::Normal { offset: bits } = member.attr else {
            bail!("{path}: a bit field has no offset in bytes");
        };
        let name = member.name.context("a field has no name")?.to_string_lossy();
        let path = if path.is_empty() {
            name.into_owned()
        } else {
            format!("{path}.{name}")
        };
        add_value(btf, member.ty, offset + bits as usize / 8, &path, fields)?;
    }
    Ok(())
}

fn add_value(btf: &Btf<'_>, ty: TypeId, offset: usize, path: &str, fields: &mut Map<String, Value>) -> Result<()> {
    let ty: BtfType<'_> = btf.type_by_id(ty).context("a field has no type")?;
    let ty = ty.skip_mods_and_typedefs();
    if let Ok(number) = Int::try_from(ty) {
        fields.insert(path.to_owned(), json!([offset, number.bits / 8]));
    } else if let Ok(inner) = Composite::try_from(ty) {
        add(btf, inner, offset, path, fields)?;
    } else if let Ok(array) = Array::try_from(ty) {
        let size = size_of(array.contained_type())?;
        for index in 0..array.capacity() {
            add_value(
                btf,
                array.ty(),
                offset + index * size,
                &format!("{path}[{index}]"),
                fields,
            )?;
        }
    } else {
        bail!("{path} is neither an integer nor made of such");
    }
    Ok(())
}

fn size_of(ty: BtfType<'_>) -> Result<usize> {
    let ty = ty.skip_mods_and_typedefs();
    if let Ok(number) = Int::try_from(ty) {
        return Ok(usize::from(number.bits / 8));
    }
    if let Ok(inner) = Composite::try_from(ty) {
        return Ok(inner.size());
    }
    let array = Array::try_from(ty).ok().context("an array's value has no size")?;
    Ok(array.capacity() * size_of(array.contained_type())?)
}
