//! `docs/bench.schema.json`, and the check of documents against it.
//!
//! The check implements the keywords that the schema uses, and refuses a schema with any other.

use serde_json::{Map, Value, json};

use crate::command::towline;

/// Checks a document against `docs/bench.schema.json`.
#[track_caller]
pub(crate) fn assert_fits(document: &Value) {
    let schema: Value = serde_json::from_str(include_str!("../../../docs/bench.schema.json")).unwrap();
    if let Err(why) = check(&schema, document, "document") {
        panic!("{why}\n{document:#}");
    }
}

fn check(schema: &Value, document: &Value, at: &str) -> Result<(), String> {
    let schema = schema.as_object().ok_or_else(|| format!("{at}: the schema is no object: {schema}"))?;
    for (keyword, value) in schema {
        let holds = match keyword.as_str() {
            "$schema" | "title" | "description" => true,
            "type" => one_or_several(value).any(|name| is(document, name)),
            "const" => document == value,
            "anyOf" => several(value).iter().any(|schema| check(schema, document, at).is_ok()),
            "enum" => several(value).contains(document),
            "required" => {
                let object = document.as_object();
                let has = |key: &Value| {
                    key.as_str().is_some_and(|key| object.is_none_or(|it| it.contains_key(key)))
                };
                several(value).iter().all(has)
            }
            "minItems" => {
                document.as_array().is_none_or(|items| items.len() as u64 >= value.as_u64().unwrap())
            }
            "maxItems" => {
                document.as_array().is_none_or(|items| items.len() as u64 <= value.as_u64().unwrap())
            }
            "properties" => {
                let known = value.as_object().into_iter().flatten();
                for (key, schema) in known {
                    if let Some(value) = document.get(key) {
                        check(schema, value, &format!("{at}.{key}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                for (key, value) in additional(schema, document) {
                    match schema[keyword] {
                        Value::Bool(false) => return Err(format!("{at}.{key} is not in the schema")),
                        ref schema => check(schema, value, &format!("{at}.{key}"))?,
                    }
                }
                true
            }
            "items" => {
                for (index, item) in document.as_array().into_iter().flatten().enumerate() {
                    check(value, item, &format!("{at}[{index}]"))?;
                }
                true
            }
            _ => return Err(format!("{at}: the schema says `{keyword}`, which nothing here checks")),
        };
        if !holds {
            return Err(format!("{at} is {document}, against {keyword}: {value}"));
        }
    }
    Ok(())
}

fn is(document: &Value, name: &str) -> bool {
    match name {
        "null" => document.is_null(),
        "boolean" => document.is_boolean(),
        "string" => document.is_string(),
        "array" => document.is_array(),
        "object" => document.is_object(),
        "number" => document.is_number(),
        "integer" => document.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

fn one_or_several(value: &Value) -> impl Iterator<Item = &str> {
    let several = value.as_array().into_iter().flatten();
    value.as_str().into_iter().chain(several.filter_map(Value::as_str))
}

fn several(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Returns the members of an object that its schema does not name.
fn additional<'a>(
    schema: &'a Map<String, Value>,
    document: &'a Value,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let named = schema.get("properties").and_then(Value::as_object);
    let members = document.as_object().into_iter().flatten();
    members.filter(move |(key, _)| !named.is_some_and(|named| named.contains_key(*key)))
}

#[test]
fn every_backend_that_info_lists_may_be_in_a_row() {
    let schema: Value = serde_json::from_str(include_str!("../../../docs/bench.schema.json")).unwrap();
    let rows = &schema["properties"]["results"]["items"]["properties"];
    let listed = towline(&["info", "--json"]).document();
    let names = listed["backends"].as_array().unwrap().iter().map(|backend| &backend["name"]);
    for name in names.chain([&json!("auto")]) {
        assert!(rows["transport"]["enum"].as_array().unwrap().contains(name), "{name}");
    }
}

#[test]
fn each_keyword_of_the_schema_is_checked() {
    let row = json!({"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}});
    for (schema, fits, does_not) in [
        (json!({"type": ["object", "null"]}), json!(null), json!("x")),
        (json!({"type": "integer"}), json!(2.0), json!(2.5)),
        (json!({"type": "number"}), json!(2), json!("2")),
        (json!({"const": 1}), json!(1), json!(2)),
        (json!({"enum": ["a", null]}), json!(null), json!("b")),
        (json!({"anyOf": [{"const": 1}, {"const": 2}]}), json!(2), json!(3)),
        (json!({"required": ["a"]}), json!({"a": null}), json!({"b": 1})),
        (row.clone(), json!({"a": 1, "b": "x"}), json!({"a": "x"})),
        (row, json!({"a": 1}), json!({"b": 1})),
        (json!({"additionalProperties": false}), json!({}), json!({"b": 1})),
        (json!({"items": {"type": "null"}}), json!([null]), json!([null, 1])),
        (json!({"minItems": 2}), json!([1, 2]), json!([1])),
        (json!({"maxItems": 1}), json!([1]), json!([1, 2])),
    ] {
        assert_eq!(check(&schema, &fits, "document"), Ok(()), "{schema}");
        assert!(check(&schema, &does_not, "document").is_err(), "{schema}: {does_not}");
    }
    let unknown = check(&json!({"pattern": "^a"}), &json!("b"), "document").unwrap_err();
    assert!(unknown.contains("`pattern`, which nothing here checks"), "{unknown}");
}
